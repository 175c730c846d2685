// Package gossip is being written.
package gossip
