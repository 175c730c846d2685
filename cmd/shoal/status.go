package main

import (
	"context"
	"os"
	"time"
)

type statusCmd struct {
	nodeFlag
	JSON bool `name:"json" help:"print the API's answer as it is"`
}

// Run asks the node and prints what it says.
func (c *statusCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := c.client().Status(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(os.Stdout, s)
	}
	return printStatus(os.Stdout, s)
}
