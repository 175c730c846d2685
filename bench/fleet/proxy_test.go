package fleet_test

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/daemon"
)

// proxyIP is the address at which a node's peers reach it, in place of its own.
const proxyIP = "127.0.0.2"

// throughProxy configures a node so that its peers reach its peer port through
// a proxy on another loopback address.
func throughProxy(c *daemon.Config) {
	c.Advertise = proxyIP
	c.Gossip.Listen = proxyIP + ":0"
}

// proxy stands between a node's peer port and those who dial it. It passes
// bytes on until limit bytes have gone out from the node, then what its test
// says happens.
type proxy struct {
	ln    net.Listener
	limit atomic.Int64 // bytes that may still leave the node
	cut   bool         // at the limit: close everything, instead of stalling

	mu    sync.Mutex
	conns map[net.Conn]bool
	dead  bool
	over  chan struct{} // closed at the end of the test
	wg    sync.WaitGroup
}

func startProxy(t *testing.T, n *fleet.Node, limit int64, cut bool) *proxy {
	t.Helper()
	_, port, err := net.SplitHostPort(n.Self().Addr)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(proxyIP, port))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, cut: cut, conns: make(map[net.Conn]bool), over: make(chan struct{})}
	p.limit.Store(limit)
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.pass(c, net.JoinHostPort("127.0.0.1", port)) })
		}
	})
	t.Cleanup(func() {
		close(p.over)
		p.kill()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	p.ln.Close()
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) pass(c net.Conn, to string) {
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	if !p.keep(c) || !p.keep(up) {
		return
	}
	p.wg.Go(func() {
		_, _ = io.Copy(up, c)
		up.Close()
	})
	buf := make([]byte, 16<<10)
	for {
		n, err := up.Read(buf)
		if err != nil {
			return
		}
		if p.limit.Add(-int64(n)) < 0 {
			if p.cut {
				p.kill()
				return
			}
			<-p.over // not another byte
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}
