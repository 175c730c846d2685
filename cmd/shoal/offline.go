package main

import (
	"context"
	"fmt"
	"os"
)

type offlineCmd struct {
	nodeFlag
	Mode onOff `arg:"" optional:"" name:"on|off" help:"on: contact no registry from now on; off: contact them again (default: say which it is)"`
}

// An onOff is an argument: "on", "off", or "" if there is none.
type onOff string

// UnmarshalText is for kong.
func (o *onOff) UnmarshalText(text []byte) error {
	if *o = onOff(text); *o != "on" && *o != "off" {
		return fmt.Errorf("%q is neither on nor off", text)
	}
	return nil
}

// Help is kong's longer text.
func (offlineCmd) Help() string {
	return "Holds until the node is started again, which does as the key offline of its configuration says."
}

// Run asks or switches the node, and prints which it is.
func (c *offlineCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	if c.Mode != "" {
		if err := c.client().SetOffline(ctx, c.Mode == "on"); err != nil {
			return err
		}
	}
	offline, err := c.client().Offline(ctx)
	if err != nil {
		return err
	}
	word := "off"
	if offline {
		word = "on"
	}
	_, err = fmt.Fprintln(os.Stdout, word)
	return err
}
