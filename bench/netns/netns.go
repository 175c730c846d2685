package netns

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"time"
)

const (
	// slowest is the lowest rate in bytes/s that a link can be given: below it
	// the burst that every shaper has would be minutes' worth.
	slowest = 1000
	// mostZones is how many zones a lab can have: each is a port of the core.
	mostZones = 512
	// longest is the longest delay: TCP gives up on a peer that is much farther.
	longest = 10 * time.Second
)

// A Link is what a host is connected with, in bytes/s on the wire, headers
// included. 0 is as fast as the machine can.
type Link struct {
	Up, Down float64
}

// Options say what a lab is like.
type Options struct {
	// Zones is how many there are; 0 is one.
	Zones int
	// CrossZoneRate is what each zone may send to all others together, and
	// receive from them, in bytes/s. 0 is as much as its hosts can.
	CrossZoneRate float64
	// Delay is how long every packet is under way from one host to any other.
	// 0 is as long as the machine takes.
	Delay time.Duration
	// Congestion is TCP's congestion control on all hosts, by the kernel's name
	// for it, such as cubic. "" is what this machine has.
	Congestion string
	// Log gets what is made and removed. Nil is nowhere.
	Log *slog.Logger
}

// hostName is what a host may be called: it becomes part of a file's name.
var hostName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

// validate returns what makes no sense.
func (o Options) validate() error {
	var errs []error
	if o.Zones < 0 || o.Zones > mostZones {
		errs = append(errs, fmt.Errorf("%d zones: there can be 1 to %d", o.Zones, mostZones))
	}
	if err := checkRate(o.CrossZoneRate); err != nil {
		errs = append(errs, fmt.Errorf("rate between zones: %w", err))
	}
	if o.Delay < 0 || o.Delay > longest {
		errs = append(errs, fmt.Errorf("delay of %s: it can be 0 to %s", o.Delay, longest))
	}
	return errors.Join(errs...)
}

// checkRate returns what is wrong with a rate in bytes/s.
func checkRate(r float64) error {
	if r == 0 || (r >= slowest && !math.IsInf(r, 1)) {
		return nil
	}
	return fmt.Errorf("%v bytes/s: give at least %d (8 kbit/s), or 0 for a link without a limit", r, slowest)
}

// checkHost returns what is wrong with a host that is to be made.
func (o Options) checkHost(name string, zone int, link Link) error {
	if !hostName.MatchString(name) {
		return fmt.Errorf("host name %q: use up to 63 lower-case letters, digits, dots and hyphens", name)
	}
	if zone < 0 || zone >= max(o.Zones, 1) {
		return fmt.Errorf("host %s: zone %d: zones are 0 to %d", name, zone, max(o.Zones, 1)-1)
	}
	if err := checkRate(link.Up); err != nil {
		return fmt.Errorf("host %s: upload rate: %w", name, err)
	}
	if err := checkRate(link.Down); err != nil {
		return fmt.Errorf("host %s: download rate: %w", name, err)
	}
	return nil
}
