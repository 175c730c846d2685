package rate

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// A Rate is bytes per second; 0 is no limit.
type Rate float64

// Unlimited is the Rate that limits nothing. It is the zero value, so that a
// configuration that says nothing has no limits.
const Unlimited Rate = 0

// unlimited is how Unlimited is written.
const unlimited = "unlimited"

const (
	minRate Rate = 1.0 / 8 // 1bit
	maxRate Rate = 1e15    // 8000tbit
)

// accepted is what Parse takes, as its errors say it.
const accepted = "write a number with kbit, mbit, gbit or tbit (bits per second), or with kB/s, MB/s, GB/s, KiB/s, MiB/s or GiB/s (bytes per second), such as 200mbit or 25MB/s, or " + unlimited

// ErrSyntax is wrapped by the errors of Parse.
var ErrSyntax = errors.New("not a rate")

// unit is what may follow the number, in lower case, and its bytes per second.
// The units of bits are those of tc(8) and network engineers, powers of 1000.
// Their B/s relatives in tc, "mbps", are left out: half of the world reads
// them as bits.
type unit struct {
	name  string // as String writes it
	bytes float64
}

// units are in the order in which String tries them.
var units = [...]unit{
	{"tbit", 1e12 / 8},
	{"gbit", 1e9 / 8},
	{"mbit", 1e6 / 8},
	{"kbit", 1e3 / 8},
	{"bit", 1.0 / 8},
	{"GiB/s", 1 << 30},
	{"MiB/s", 1 << 20},
	{"KiB/s", 1 << 10},
	{"GB/s", 1e9},
	{"MB/s", 1e6},
	{"kB/s", 1e3},
	{"B/s", 1},
}

// Parse reads a rate: a positive decimal number and a unit, "200mbit" or
// "25 MB/s", or the word "unlimited". Case does not count in the units of bits
// per second; it does in those of bytes, except for k, since a wrong case there
// is mostly a wrong factor of eight. Its errors wrap ErrSyntax and say what is
// accepted.
func Parse(s string) (Rate, error) {
	text := strings.TrimSpace(s)
	if strings.EqualFold(text, unlimited) {
		return Unlimited, nil
	}
	end := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end <= 0 || strings.HasPrefix(text, ".") || text[end-1] == '.' {
		return 0, fmt.Errorf("%.40q is %w: %s", s, ErrSyntax, accepted)
	}
	factor, ok := unitOf(strings.TrimSpace(text[end:]))
	if !ok {
		return 0, fmt.Errorf("%.40q is %w: %s", s, ErrSyntax, accepted)
	}
	n, err := strconv.ParseFloat(text[:end], 64)
	if err != nil {
		return 0, fmt.Errorf("%.40q is %w: %s", s, ErrSyntax, accepted)
	}
	r := Rate(n * factor)
	switch {
	case r == 0:
		return 0, fmt.Errorf("%.40q is %w that anything could go on at: write %s for no limit", s, ErrSyntax, unlimited)
	case r < minRate, r > maxRate:
		return 0, fmt.Errorf("%.40q is %w that a network has: write one between 1bit and 8000tbit, or %s", s, ErrSyntax, unlimited)
	}
	return r, nil
}

// unitOf returns the bytes per second of a unit.
func unitOf(name string) (float64, bool) {
	bits := strings.TrimSuffix(strings.ToLower(name), "/s")
	for _, u := range units {
		if u.name == bits || u.name == name || strings.HasPrefix(name, "K") && u.name == "k"+name[1:] ||
			strings.HasPrefix(name, "k") && u.name == "K"+name[1:] {
			return u.bytes, true
		}
	}
	return 0, false
}

// String writes r so that Parse reads the same, in bits per second if that
// takes few digits: 200mbit, 25MiB/s, unlimited.
func (r Rate) String() string {
	if r <= 0 || math.IsNaN(float64(r)) {
		return unlimited
	}
	best := ""
	for _, u := range units {
		n := float64(r) / u.bytes
		if n < 1 && u.bytes > 1 {
			continue
		}
		s := strconv.FormatFloat(n, 'f', -1, 64) + u.name
		if back, err := Parse(s); err == nil && back == r && (best == "" || len(s) < len(best)-2) {
			best = s
		}
	}
	if best == "" {
		return strconv.FormatFloat(float64(r), 'f', -1, 64) + "B/s"
	}
	return best
}

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err == nil {
		*r = parsed
	}
	return err
}
