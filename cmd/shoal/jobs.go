package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/shoal-project/shoal/daemon/jobs"
)

type jobsCmd struct {
	nodeFlag
	ID     string `arg:"" optional:"" help:"one job, with its nodes (default: a list of all)"`
	Cancel bool   `xor:"what" help:"end it; what is there stays there"`
	Wait   bool   `xor:"what" help:"wait for its end, as shoal pull does, and fail if it brought less than all"`
	JSON   bool   `name:"json" xor:"what" help:"print the API's answer as it is"`
}

// Run shows, ends or waits for jobs.
func (c *jobsCmd) Run() error {
	if c.ID == "" && (c.Cancel || c.Wait) {
		return usageError{errors.New("which job? `shoal jobs` lists them; write shoal jobs ID and then the flag")}
	}
	ctx, stop := interruptible()
	defer stop()
	if c.Wait {
		return follow(ctx, c.client(), c.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	switch {
	case c.Cancel:
		if err := c.client().CancelJob(ctx, c.ID); err != nil {
			return err
		}
		_, err := fmt.Fprintf(os.Stderr, "shoal: job %s is cancelled\n", c.ID)
		return err
	case c.ID == "":
		return c.list(ctx)
	}
	j, err := c.client().Job(ctx, c.ID)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(os.Stdout, j)
	}
	return printJob(os.Stdout, j)
}

func (c *jobsCmd) list(ctx context.Context) error {
	all, err := c.client().Jobs(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		if all == nil {
			all = []jobs.Job{}
		}
		return printJSON(os.Stdout, all)
	}
	return printJobs(os.Stdout, all)
}
