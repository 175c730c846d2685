package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/shoal-project/shoal/cache"
)

// cacheCmd is what is in a node's cache.
type cacheCmd struct {
	Status cacheStatusCmd `cmd:"" default:"withargs" help:"show how much is in it (what shoal cache alone does)"`
	GC     gcCmd          `cmd:"" name:"gc" help:"make room now, down to the low watermark"`
	Scrub  scrubCmd       `cmd:"" help:"read and check all blobs now; what is damaged is fetched again"`
	Pin    pinCmd         `cmd:"" help:"never evict an image, a blob or what matches a pattern"`
	Unpin  unpinCmd       `cmd:"" help:"take a pin back"`
	Pins   pinsCmd        `cmd:"" help:"list what is pinned"`
	Export exportCmd      `cmd:"" help:"write images as an OCI image layout"`
	Import importCmd      `cmd:"" help:"give a node the images of an OCI image layout"`
}

type cacheStatusCmd struct {
	nodeFlag
	JSON bool `name:"json" help:"print the API's answer as it is"`
}

// Run asks the node and prints what it says.
func (c *cacheStatusCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	u, err := c.client().Cache(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(os.Stdout, u)
	}
	return printUse(os.Stdout, u)
}

func printUse(w io.Writer, u cache.Use) error {
	quota := "no quota"
	if u.Quota > 0 {
		quota = fmt.Sprintf("%.0f %% of the quota of %s", 100*float64(u.Bytes)/float64(u.Quota), size(u.Quota))
	}
	fmt.Fprintf(w, "%s in %s: %s\n", size(u.Bytes), plural(u.Blobs, "blob"), quota)
	if u.Partials > 0 {
		fmt.Fprintf(w, "%s in part, with %s to come\n", plural(u.Partials, "blob"), size(u.Promised))
	}
	fmt.Fprintf(w, "the file system has %s left, of which %s are kept free\n", size(u.Free), size(u.Reserve))
	if u.Pinned > 0 {
		fmt.Fprintf(w, "pinned: %s, %s\n", plural(u.Pinned, "blob"), size(u.PinnedBytes))
	}
	if u.Adopted > 0 {
		fmt.Fprintf(w, "shared with containerd: %s\n", plural(u.Adopted, "blob"))
	}
	return nil
}

type gcCmd struct {
	nodeFlag
	DryRun bool `help:"say what would go, and remove nothing"`
	JSON   bool `name:"json" help:"print the API's answer as it is"`
}

// Run has the node make room, and prints what went.
func (c *gcCmd) Run() error {
	ctx, stop := interruptible()
	defer stop()
	r, err := c.client().GC(ctx, cache.GCOptions{DryRun: c.DryRun})
	if err != nil {
		return orCut(ctx, err)
	}
	if c.JSON {
		return printJSON(os.Stdout, r)
	}
	return printGC(os.Stdout, r)
}

func printGC(w io.Writer, r cache.GCReport) error {
	if len(r.Blobs) > 0 {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(tw, "BLOB\tSIZE\tLAST USE\tUSES\tWHY\n")
		for _, b := range r.Blobs {
			last := "never"
			if !b.Last.IsZero() {
				last = humanize.Time(b.Last)
			}
			why := b.Why
			if b.Partial {
				why += ", in part"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%.1f\t%s\n", short(b.Digest.String()), size(b.Size), last, b.Uses, why)
		}
		fmt.Fprintln(tw)
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	verb := "removed"
	if r.DryRun {
		verb = "would remove"
	}
	fmt.Fprintf(w, "%s %s, %s of %s, and %s\n", verb, plural(len(r.Blobs), "blob"), size(r.Freed), size(r.Before), plural(r.Records, "old record"))
	if r.Short > 0 {
		fmt.Fprintf(w, "%s over the low watermark of %s stay: they are pinned, in use, or were asked for just now\n", size(r.Short), size(r.Target))
	}
	return nil
}

type scrubCmd struct {
	nodeFlag
	JSON bool `name:"json" help:"print the API's answer as it is"`
}

// Help is kong's longer text.
func (scrubCmd) Help() string {
	return "Takes as long as the disk and cache.scrubRate do. A damaged blob is set aside, never served, and fetched again."
}

// Run has the node check its blobs, and fails if one was damaged.
func (c *scrubCmd) Run() error {
	ctx, stop := interruptible()
	defer stop()
	told := c.tellProgress(ctx)
	r, err := c.client().Scrub(ctx)
	told()
	if err != nil {
		return orCut(ctx, err)
	}
	if c.JSON {
		err = printJSON(os.Stdout, r)
	} else {
		_, err = fmt.Fprintf(os.Stdout, "checked %s, %s, in %s; removed %s\n",
			plural(r.Blobs, "blob"), size(r.Bytes), r.Took.Round(time.Millisecond), plural(r.Orphans, "stray file"))
	}
	if err != nil {
		return err
	}
	return damage(r)
}

// tellProgress says on standard error how far the scrub is, each second on a
// terminal and else each ten, until what it returns is called.
func (c *scrubCmd) tellProgress(ctx context.Context) (stop func()) {
	p := newProgress(os.Stderr)
	every := 10 * time.Second
	if p.terminal {
		every = time.Second
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				p.clear()
				return
			case <-tick.C:
			}
			if at, err := c.client().ScrubProgress(ctx); err == nil && at.Running {
				p.tell(scrubLine(at.ScrubProgress))
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func scrubLine(at cache.ScrubProgress) string {
	line := fmt.Sprintf("checked %s of %s, %d of %s", size(at.BytesDone), size(at.Bytes), at.BlobsDone, plural(at.Blobs, "blob"))
	if at.Damaged > 0 {
		line += fmt.Sprintf("; %s damaged", plural(at.Damaged, "blob"))
	}
	return line
}

// damage returns an error with a line for each blob that was damaged.
func damage(r cache.ScrubReport) error {
	if len(r.Damaged) == 0 && r.Chunks == 0 {
		return nil
	}
	text := ""
	for _, d := range r.Damaged {
		text += d.String() + " was damaged, and is set aside\n"
	}
	if r.Chunks > 0 {
		text += plural(r.Chunks, "chunk") + " of blobs in part were damaged, and are dropped\n"
	}
	return fmt.Errorf("%sdamage comes from the disk, its cable or the memory; look at the system's log", text)
}

// pinHelp says what a pattern is.
const pinHelp = "an image (docker.io/library/alpine:3.20, ghcr.io/team/app@sha256:…), a digest (sha256:…), or a pattern (docker.io/library/*:v*, ghcr.io/team/**)"

type pinCmd struct {
	nodeFlag
	Pattern []string `arg:"" help:"${pinHelp}"`
}

// Help is kong's longer text.
func (pinCmd) Help() string {
	return "The pin keeps what is in the cache or comes into it, with all that an image needs. It brings nothing: shoal pull does. It holds until it is taken back, also when the node is started again; the key cache.pins of the configuration has others."
}

// Run pins one after the other.
func (c *pinCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	for _, p := range c.Pattern {
		if err := c.client().Pin(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

type unpinCmd struct {
	nodeFlag
	Pattern []string `arg:"" help:"as shoal cache pins lists it"`
}

// Run takes one pin back after the other.
func (c *unpinCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	for _, p := range c.Pattern {
		if err := c.client().Unpin(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

type pinsCmd struct {
	nodeFlag
	JSON bool `name:"json" help:"print the API's answer as it is"`
}

// Run lists the pins.
func (c *pinsCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	all, err := c.client().Pins(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		if all == nil {
			all = []cache.Pin{}
		}
		return printJSON(os.Stdout, all)
	}
	return printPins(os.Stdout, all)
}

func printPins(w io.Writer, all []cache.Pin) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing is pinned; `shoal cache pin PATTERN` does")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "PIN\tBLOBS\tBYTES\tFROM\n")
	for _, p := range all {
		from := "shoal cache pin"
		if p.Fixed {
			from = "cache.pins"
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", p.Pattern, p.Blobs, size(p.Bytes), from)
	}
	return tw.Flush()
}
