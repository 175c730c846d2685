package main

import (
	"context"
	"errors"
	"time"

	"github.com/shoal-project/shoal/daemon/admin"
)

// askWithin bounds how long a node may take to answer what needs no work.
const askWithin = 10 * time.Second

// nodeFlag is the flag of every command that asks a running node.
type nodeFlag struct {
	Admin string `default:"127.0.0.1:7053" env:"SHOAL_ADMIN_LISTEN" placeholder:"HOST:PORT" help:"admin.listen of the node to ask (default: ${default})"`
}

func (n nodeFlag) client() *admin.Client { return admin.NewClient(n.Admin) }

// orCut returns the interruption that ended ctx, or err if there was none.
func orCut(ctx context.Context, err error) error {
	if cut := (interrupted{}); errors.As(context.Cause(ctx), &cut) {
		return cut
	}
	return err
}
