package gossip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// Between attempts to join, firstRetry doubles up to lastRetry.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
	// disputedRetry is the longest pause while others know this member's
	// identity at another address, where it was before a restart and is about
	// to be found dead.
	disputedRetry = 2 * time.Second
	// healEvery is how often a member that is in company looks for join
	// addresses that are not, so that two halves of a fleet that were parted
	// for long find each other again. memberlist forgets the dead.
	healEvery = time.Minute
	// joinAtOnce bounds the addresses that one attempt contacts, at the same
	// time. One that answers is enough, since it knows all the others.
	joinAtOnce = 8
)

// A standing is how this member stands with the join addresses.
type standing uint8

const (
	standingNew     standing = iota
	standingJoined           // others are there
	standingAlone            // nobody can be reached
	standingRefused          // all that can be reached refuse our secret
)

// keepJoined joins, and joins again when everybody else is gone, until ctx
// ends. It returns ErrSecret if the first join was refused by all.
func (g *Gossip) keepJoined(ctx context.Context, list *memberlist.Memberlist) error {
	if len(g.join) == 0 {
		<-ctx.Done()
		return nil
	}
	var stood standing
	joined := false // ever
	retry := firstRetry
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.lonely:
			retry = firstRetry
		case <-timer.C:
		}
		disputed := g.disputed.Swap(false)
		out := g.attempt(ctx, list, disputed)
		if ctx.Err() != nil {
			return nil
		}
		if disputed && out.joined == 0 {
			g.disputed.Store(true) // nobody could be told otherwise
		}
		now := out.standing(g.company())
		joined = joined || now == standingJoined
		if now == standingRefused && !joined {
			return fmt.Errorf("gossip: %w: %w", ErrSecret, errors.Join(out.errs...))
		}
		if now != stood {
			g.report(now, out.errs)
			stood = now
		}
		pause := g.heal
		switch {
		case g.disputed.Load():
			pause = min(retry, disputedRetry)
			retry = min(2*retry, lastRetry)
		case !g.company():
			pause = retry
			retry = min(2*retry, lastRetry)
		default:
			retry = firstRetry
		}
		timer.Reset(pause - rand.N(pause/4))
	}
}

// An outcome is what came of an attempt to join.
type outcome struct {
	joined  int     // addresses that let us in
	errs    []error // one for each that could not be looked up or joined
	refused int     // of these, those that answered and refused our secret
}

// standing judges an outcome; company says whether others are there now.
func (o outcome) standing(company bool) standing {
	switch {
	case company || len(o.errs) == 0:
		// Without an error and without company, all join addresses are our
		// own: this is the first member of the fleet.
		return standingJoined
	case o.refused == len(o.errs) && o.joined == 0:
		return standingRefused
	}
	return standingAlone
}

// report logs a change.
func (g *Gossip) report(now standing, errs []error) {
	switch now {
	case standingJoined:
		g.log.Info("in the fleet", "members", len(g.Members()))
	case standingAlone:
		g.log.Warn("no join address can be reached: working alone until one can", "error", errors.Join(errs...))
	case standingRefused:
		g.log.Error(ErrSecret.Error(), "error", errors.Join(errs...))
	}
}

// attempt contacts the join addresses that are not live members, or all of
// them if all is true, but not this member's own.
func (g *Gossip) attempt(ctx context.Context, list *memberlist.Memberlist, all bool) outcome {
	skip := map[netip.AddrPort]bool{netip.AddrPortFrom(g.advertise, uint16(g.transport.port)): true}
	if !all {
		g.mu.Lock()
		for _, at := range g.at {
			skip[at] = true
		}
		g.mu.Unlock()
	}
	var out outcome
	var targets []netip.AddrPort
	targets, out.errs = g.targets(ctx)
	rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	var mu sync.Mutex
	var joining sync.WaitGroup
	contacted := 0
	for _, target := range targets {
		if skip[target] || contacted == joinAtOnce {
			continue
		}
		contacted++
		joining.Go(func() {
			_, err := list.Join([]string{target.String()})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				out.joined++
				return
			}
			out.errs = append(out.errs, joinError(target, err))
			if refusesSecret(err) {
				out.refused++
			}
		})
	}
	joining.Wait()
	return out
}

// targets looks the join addresses up.
func (g *Gossip) targets(ctx context.Context) (targets []netip.AddrPort, errs []error) {
	seen := make(map[netip.AddrPort]bool)
	for _, j := range g.join {
		ips, err := lookup(ctx, j.host)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", net.JoinHostPort(j.host, fmt.Sprint(j.port)), err))
			continue
		}
		for _, ip := range ips {
			target := netip.AddrPortFrom(ip, j.port)
			if !seen[target] {
				targets = append(targets, target)
			}
			seen[target] = true
		}
	}
	return targets, errs
}

// lookup returns the IP addresses of host.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, err
}

// joinError gives memberlist's report on one address as one line.
func joinError(target netip.AddrPort, err error) error {
	if refusesSecret(err) {
		return fmt.Errorf("%s answers, and refuses our secret", target)
	}
	text := strings.TrimSpace(err.Error())
	if _, after, ok := strings.Cut(text, fmt.Sprintf("failed to join %s: ", target)); ok {
		text = after
	}
	if strings.HasSuffix(text, "EOF") || strings.HasSuffix(text, "connection reset by peer") {
		text += ": it may not let this node's peer ID in"
	}
	return fmt.Errorf("%s: %s", target, text)
}

// refusesSecret reports whether err, of memberlist's Join, says that the other
// end answered but has another secret, or none, or that we have none. The
// other end tells us so in a message of its own kind, which we can't read
// either; memberlist has no error values for it, and a test holds its words.
func refusesSecret(err error) bool {
	text := err.Error()
	for _, words := range []string{
		refusedKey, // both have one
		"remote state is encrypted and encryption is not configured", // only they have
		"encryption is configured but remote state is not encrypted", // only we have
	} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}
