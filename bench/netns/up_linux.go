package netns

import (
	"errors"
	"fmt"
	"time"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// upWithin is how long the kernel may take to have a link up. It takes
// milliseconds, and up to a second if it has a lot to do with links.
const upWithin = 10 * time.Second

// An end is that of a link.
type end struct {
	ns   *namespace
	nl   *netlink.Handle // in ns
	name string
}

// setUp sets a link up.
func setUp(nl *netlink.Handle, name string) error {
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// bringUp sets both ends of a link up and returns when packets go through it.
// The kernel says that a link is up before it is: it starts the queues of the
// end that was up first a moment later, and the bridge's port. What is sent in
// between is lost, and if that begins a connection TCP waits for a second.
func bringUp(a, b end) error {
	var waits []func() error
	for _, e := range []end{a, b} {
		wait, stop, err := e.watch()
		if err != nil {
			return err
		}
		defer stop()
		waits = append(waits, wait)
	}
	if err := errors.Join(setUp(a.nl, a.name), setUp(b.nl, b.name)); err != nil {
		return err
	}
	return errors.Join(waits[0](), waits[1]())
}

// watch subscribes to the news of links in the end's namespace. wait returns
// when this one works; stop ends the subscription.
func (e end) watch() (wait func() error, stop func(), err error) {
	var c *mdlayher.Conn
	err = e.ns.do(func() (err error) {
		c, err = mdlayher.Dial(unix.NETLINK_ROUTE, &mdlayher.Config{Groups: unix.RTMGRP_LINK})
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("watch link %s: %w", e.name, err)
	}
	wait = func() error {
		if err := e.wait(c); err != nil {
			return fmt.Errorf("wait for link %s to be up: %w", e.name, err)
		}
		return nil
	}
	return wait, func() { _ = c.Close() }, nil
}

// wait waits for news until the link works.
func (e end) wait(news *mdlayher.Conn) error {
	if err := news.SetReadDeadline(time.Now().Add(upWithin)); err != nil {
		return err
	}
	for {
		link, err := e.nl.LinkByName(e.name)
		if err != nil || link.Attrs().OperState == netlink.OperUp {
			return err
		}
		// Lost news (ENOBUFS) are news too.
		if _, err := news.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}
