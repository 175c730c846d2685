package cache

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// An Amount is how much of something: bytes, or a share of a whole. As a text
// it is "200GiB", "500MB", "1048576", or "80%" of what the context says. The
// zero Amount is nothing said.
type Amount struct {
	bytes   int64
	percent float64
}

// Bytes returns the Amount of n bytes.
func Bytes(n int64) Amount { return Amount{bytes: n} }

// Percent returns the Amount of so many hundredths of a whole.
func Percent(p float64) Amount { return Amount{percent: p} }

// IsZero reports whether nothing was said.
func (a Amount) IsZero() bool { return a == Amount{} }

// IsShare reports whether a is a share and not bytes.
func (a Amount) IsShare() bool { return a.percent != 0 }

// Of returns a in bytes, where total is the whole in bytes.
func (a Amount) Of(total int64) int64 {
	if a.percent != 0 {
		return int64(float64(total) / 100 * a.percent)
	}
	return a.bytes
}

// String returns the text that UnmarshalText reads as a.
func (a Amount) String() string {
	switch {
	case a.IsZero():
		return ""
	case a.percent != 0:
		return strconv.FormatFloat(a.percent, 'f', -1, 64) + "%"
	}
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if a.bytes%u.size == 0 {
			return strconv.FormatInt(a.bytes/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(a.bytes, 10)
}

// MarshalText is part of encoding.TextMarshaler.
func (a Amount) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what String writes, and any unit of bytes.
func (a *Amount) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if s == "" {
		*a = Amount{}
		return nil
	}
	if number, ok := strings.CutSuffix(s, "%"); ok {
		p, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(p > 0 && p <= 100) {
			return fmt.Errorf("%q is not a share; write more than 0%% and at most 100%%", s)
		}
		*a = Amount{percent: p}
		return nil
	}
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > math.MaxInt64 {
		return fmt.Errorf("%q is not an amount; write bytes such as 200GiB, or a share such as 80%%", s)
	}
	*a = Amount{bytes: int64(n)}
	return nil
}
