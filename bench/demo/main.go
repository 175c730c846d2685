package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/dustin/go-humanize"
)

// options are what the command line says.
type options struct {
	shoal     string // path of the binary
	registryd string // path of the binary
	nodes     int
	layers    []int64 // sizes in bytes
	rate      int64   // of the registry, in bytes a second; 0: no limit
	logs      bool
}

// errInterrupted is for Ctrl-C and the like.
var errInterrupted = errors.New("interrupted")

func main() {
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(0)
		}
		os.Exit(2) // flag has said why
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	go interrupt(cancel) // until the process ends
	err = run(ctx, o, newScreen(os.Stdout))
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	if errors.Is(err, errInterrupted) {
		os.Exit(130)
	}
	os.Exit(1)
}

// interrupt calls cancel at the first signal that asks to end. Cleaning up
// takes a moment; who presses Ctrl-C again does not want to wait for it.
func interrupt(cancel context.CancelCauseFunc) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	<-signals
	cancel(errInterrupted)
	for s := range signals {
		if s == os.Interrupt {
			os.Exit(130)
		}
	}
}

func parseFlags(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.StringVar(&o.shoal, "shoal", "bin/shoal", "the shoal binary")
	f.StringVar(&o.registryd, "registryd", "bin/registryd", "the registryd binary")
	f.IntVar(&o.nodes, "nodes", 3, "how many daemons to start")
	f.BoolVar(&o.logs, "logs", false, "show what all processes log, on standard error")
	size := f.String("size", "192MiB", "size of the image, in five layers")
	rate := f.String("rate", "48MiB", "bytes a second that the registry sends at most; 0 for no limit")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	err := func() error {
		total, err := humanize.ParseBytes(*size)
		if err != nil || total < 1<<20 || total > 16<<30 {
			return fmt.Errorf("-size %s: want 1MiB to 16GiB", *size)
		}
		o.layers = split(int64(total))
		limit, err := humanize.ParseBytes(*rate)
		if err != nil || limit > 1<<40 {
			return fmt.Errorf("-rate %s: want bytes a second, such as 48MiB, or 0", *rate)
		}
		o.rate = int64(limit)
		if o.nodes < 1 || o.nodes > 100 {
			return fmt.Errorf("-nodes %d: want 1 to 100", o.nodes)
		}
		for _, binary := range []string{o.shoal, o.registryd} {
			if _, err := os.Stat(binary); err != nil {
				return fmt.Errorf("%w; `make demo` builds it and runs the demo", err)
			}
		}
		return nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	return o, err
}

// split returns the sizes of an image's layers, unequal as in real ones.
func split(total int64) []int64 {
	sizes := []int64{total / 2, total / 4, total / 8, total / 16}
	rest := total
	for _, s := range sizes {
		rest -= s
	}
	return append(sizes, rest)
}
