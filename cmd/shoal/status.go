package main

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
)

type statusCmd struct {
	Admin string `default:"127.0.0.1:7053" env:"SHOAL_ADMIN_LISTEN" placeholder:"HOST:PORT" help:"admin.listen of the node to ask (default: ${default})"`
	JSON  bool   `name:"json" help:"print the API's answer as it is"`
}

// Run asks the node and prints what it says.
func (c *statusCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := admin.NewClient(c.Admin).Status(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	return printStatus(os.Stdout, s)
}
