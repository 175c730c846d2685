package veil

import (
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/proto"
)

const (
	// validFor is how long a capability can be used: for one request, which is
	// made at once.
	validFor = 2 * time.Minute
	// skew is how far the clocks of two members may be apart.
	skew = 30 * time.Second
	// maxCapability bounds a capability in bytes.
	maxCapability = 256
	// capabilityVersion is what a capability begins with.
	capabilityVersion = "1"
)

// Errors of Admit.
var (
	ErrCapability = errors.New("no capability for this blob")
	// ErrClock is wrapped too if only the time was wrong.
	ErrClock = errors.New("the capability is of another time: compare the clocks of the members")
)

// Capability returns what this node shows to be given d by its peers, in the
// next two minutes.
func (v *Veil) Capability(d proto.Digest) string {
	v.mu.Lock()
	k := v.current()[0]
	v.mu.Unlock()
	expiry := strconv.FormatInt(v.now().Add(validFor).Unix(), 10)
	mac := k.mac(k.aliasOf(d), v.cfg.Self, expiry)
	return strings.Join([]string{capabilityVersion, v.cfg.Self, expiry, base64.RawURLEncoding.EncodeToString(mac)}, ".")
}

// Admit returns nil if a capability admits its owner to d: it was made with one
// of the current secrets, has not expired, and is asker's. An empty asker has
// proven nothing, as with security none; then the name inside counts.
func (v *Veil) Admit(d proto.Digest, asker, capability string) error {
	c, err := parseCapability(capability)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCapability, err)
	}
	if asker != "" && asker != c.owner {
		return fmt.Errorf("%w: it is of %.80q, and shown by %.80q", ErrCapability, c.owner, asker)
	}
	v.mu.Lock()
	current := v.current()
	v.mu.Unlock()
	proven := false
	for _, k := range current {
		proven = hmac.Equal(c.mac, k.mac(k.aliasOf(d), c.owner, c.expiry)) || proven
	}
	if !proven {
		return fmt.Errorf("%w: it was made for another or with another secret", ErrCapability)
	}
	left := c.expires.Sub(v.now())
	if left < -skew || left > validFor+skew {
		return fmt.Errorf("%w: %w (%v left)", ErrCapability, ErrClock, left.Round(time.Second))
	}
	return nil
}

// A capability as it was read, not proven yet.
type capability struct {
	owner   string
	expiry  string // as it was written
	expires time.Time
	mac     []byte
}

func parseCapability(s string) (capability, error) {
	if len(s) > maxCapability {
		return capability{}, errors.New("too long")
	}
	parts := strings.Split(s, ".")
	if len(parts) != 4 || parts[0] != capabilityVersion {
		return capability{}, errors.New("not of the form 1.ID.time.proof")
	}
	seconds, err := strconv.ParseUint(parts[2], 10, 40)
	if err != nil {
		return capability{}, errors.New("its time is no number of seconds")
	}
	mac, err := base64.RawURLEncoding.DecodeString(parts[3])
	if err != nil {
		return capability{}, errors.New("its proof is not in base64")
	}
	return capability{owner: parts[1], expiry: parts[2], expires: time.Unix(int64(seconds), 0), mac: mac}, nil
}
