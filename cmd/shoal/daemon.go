package main

import (
	"context"
	"os"

	"github.com/shoal-project/shoal/proto"
)

type daemonCmd struct{ settings }

// Help is kong's longer text.
func (daemonCmd) Help() string { return settingsHelp }

// Run runs the daemon until it is told to stop.
func (c *daemonCmd) Run() error {
	cfg, err := c.load(context.Background(), proto.RoleDaemon)
	if err != nil {
		return err
	}
	return serve(cfg, os.Stderr)
}
