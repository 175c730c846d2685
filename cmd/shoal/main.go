package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/shoal-project/shoal/daemon"
)

type cli struct {
	Daemon    daemonCmd    `cmd:"" help:"run the node's daemon: the mirror for its runtimes, a member of the fleet"`
	Scheduler schedulerCmd `cmd:"" help:"run a scheduler: the fleet's preferred one, and the seed of what it brings from origins"`
	Config    configCmd    `cmd:"" help:"print or check the effective configuration"`
	Status    statusCmd    `cmd:"" help:"show what a running node is doing"`
	Pull      pullCmd      `cmd:"" help:"bring images to the cache of a node, or of many, before they are asked for"`
	Jobs      jobsCmd      `cmd:"" help:"show, cancel or wait for what shoal pull and the node itself have started"`
	Cache     cacheCmd     `cmd:"" help:"show, clean, check, pin, export and import what is in the cache of a node"`
	Offline   offlineCmd   `cmd:"" help:"say whether a node may contact registries, and switch it"`
	Block     blockCmd     `cmd:"" help:"refuse an image on all nodes"`
	Unblock   unblockCmd   `cmd:"" help:"let an image be pulled again"`
	Blocked   blockedCmd   `cmd:"" help:"list what is blocked"`
	Configure configureCmd `cmd:"" help:"have containerd, docker, podman or crio use the mirror, or undo that"`
	Doctor    doctorCmd    `cmd:"" help:"check each link of the chain from the runtimes to the registries"`
	CA        caCmd        `cmd:"" name:"ca" help:"make and show the CA of the forward proxy"`
	Bench     benchCmd     `cmd:"" help:"measure what a fleet does"`
	Version   versionCmd   `cmd:"" help:"print the version"`
}

func main() {
	if len(os.Args) > 1 && slices.Contains([]string{"daemon", "scheduler", "bench"}, os.Args[1]) {
		relaxTimers() // goes first: see there
	}
	os.Exit(run(os.Args[1:]))
}

// run is main without the exit: it carries out one command line and returns
// the exit code.
func run(args []string) int {
	c := cli{
		Daemon:    daemonCmd{settings: newSettings()},
		Scheduler: schedulerCmd{settings: newSettings()},
		Config:    configCmd{settings: newSettings()},
	}
	parser, err := kong.New(&c,
		kong.Name("shoal"),
		kong.Description("A pull-through cache for container images whose nodes fetch from each other."),
		kong.Vars{"pinHelp": pinHelp},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
	if err != nil {
		printError(os.Stderr, err)
		return 1
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if err != nil {
		err = usageError{fmt.Errorf("%w; `shoal --help` and `shoal COMMAND --help` say what there is", err)}
		printError(os.Stderr, err)
		return exitCode(err)
	}
	if err := command.Run(); err != nil {
		printError(os.Stderr, err)
		return exitCode(err)
	}
	return 0
}

// serve runs a process with the given configuration until a signal has ended
// it and it has drained. A second signal exits at once.
//
// The first line of the log says which build starts as what. The addresses are
// on the line with which daemon.Run says that they are open.
func serve(cfg daemon.Config, stderr *os.File) error {
	log := newLog(cfg.Log, stderr)
	ctx, stop := untilSignal(log)
	defer stop()
	v := version()
	log.Info("shoal is starting", "version", v.Version, "commit", v.Commit, "role", cfg.Role.String(), "name", cfg.Name)
	d, err := daemon.New(cfg, log)
	if err != nil {
		return err
	}
	return errors.Join(d.Run(ctx), d.Close())
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM.
// The second one exits the process: whoever sends it does not want to wait.
// stop gives the signals back.
func untilSignal(log *slog.Logger) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case s := <-signals:
			log.Info("told to stop; a second signal exits at once", "signal", s.String())
			cancel()
		case <-done:
			return
		}
		select {
		case s := <-signals:
			log.Warn("exiting without draining", "signal", s.String())
			code := 1
			if n, ok := s.(syscall.Signal); ok {
				code = 128 + int(n)
			}
			os.Exit(code)
		case <-done:
		}
	})
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
		cancel()
	}
}
