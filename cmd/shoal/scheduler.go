package main

import (
	"context"
	"os"

	"github.com/shoal-project/shoal/proto"
)

type schedulerCmd struct{ settings }

// Help is kong's longer text.
func (schedulerCmd) Help() string {
	return "The file is the same as the daemon's. A scheduler has no mirror unless mirror.listen is set, and listens to the fleet, so it needs gossip.secretFile.\n\n" + settingsHelp
}

// Run runs the scheduler until it is told to stop.
func (c *schedulerCmd) Run() error {
	cfg, err := c.load(context.Background(), proto.RoleScheduler)
	if err != nil {
		return err
	}
	return serve(cfg, os.Stderr)
}
