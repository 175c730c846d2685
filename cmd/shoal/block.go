package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/shoal-project/shoal/daemon/blocklist"
)

// blockWithin bounds how long a node may take to find out what an image is,
// and to write down that it is blocked.
const blockWithin = time.Minute

type blockCmd struct {
	nodeFlag
	Image  []string `arg:"" help:"a digest (sha256:…), an image with a digest, or one with a tag: then what that names now"`
	Reason string   `help:"told to whoever is refused, such as \"CVE-2026-1234, take v2\""`
	JSON   bool     `name:"json" help:"print the API's answer as it is"`
}

// Help is kong's longer text.
func (blockCmd) Help() string {
	return "Refuses the digest everywhere: this node tells the others, which takes seconds; who is away is told when it is back. With an index, its images that are known are blocked. Nothing is removed: not from the caches, and not from runtimes that have pulled it."
}

// Run blocks one image after the other.
func (c *blockCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), blockWithin)
	defer cancel()
	var all []blocklist.Entry
	for _, image := range c.Image {
		done, err := c.client().Block(ctx, image, c.Reason)
		if err != nil {
			return err
		}
		all = append(all, done...)
	}
	if c.JSON {
		return printJSON(os.Stdout, all)
	}
	return printBlocking(os.Stdout, "blocked", all)
}

type unblockCmd struct {
	nodeFlag
	Image []string `arg:"" help:"as for shoal block; a tag may name something else by now, so that digests are better"`
	JSON  bool     `name:"json" help:"print the API's answer as it is"`
}

// Run unblocks one image after the other.
func (c *unblockCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), blockWithin)
	defer cancel()
	var all []blocklist.Entry
	for _, image := range c.Image {
		done, err := c.client().Unblock(ctx, image)
		if err != nil {
			return err
		}
		all = append(all, done...)
	}
	if c.JSON {
		return printJSON(os.Stdout, all)
	}
	return printBlocking(os.Stdout, "unblocked", all)
}

// printBlocking says in a line each what was done.
func printBlocking(w io.Writer, verb string, all []blocklist.Entry) error {
	for _, e := range all {
		with := ""
		if !e.Of.IsZero() {
			with = ", which is in " + short(e.Of.String())
		}
		if _, err := fmt.Fprintf(w, "%s %s%s\n", verb, e.Digest, with); err != nil {
			return err
		}
	}
	return nil
}

type blockedCmd struct {
	nodeFlag
	JSON bool `name:"json" help:"print the API's answer as it is"`
}

// Run lists what is blocked.
func (c *blockedCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	all, err := c.client().Blocked(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(os.Stdout, all)
	}
	return printBlocked(os.Stdout, all)
}

func printBlocked(w io.Writer, all []blocklist.Entry) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing is blocked; `shoal block` does")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "DIGEST\tWHEN\tAT\tIN\tREASON\n")
	for _, e := range all {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", e.Digest, e.At.Local().Format(time.DateTime), dash(e.By), dash(short(e.Of.String())), dash(e.Reason))
	}
	return tw.Flush()
}
