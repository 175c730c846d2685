package blocklist

import (
	"cmp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shoal-project/shoal/proto"
)

// Bounds in bytes of the texts of an entry, so that a note fits MaxNote.
const (
	maxReason = 200
	maxBy     = 64
)

// An Entry says that a digest is blocked, or no longer.
type Entry struct {
	Digest  proto.Digest `json:"digest"`
	Blocked bool         `json:"blocked"`
	// Reason is for whoever is refused.
	Reason string `json:"reason,omitempty"`
	// By is the name of the node where it was said.
	By string `json:"by,omitempty"`
	// Of is the index that it was blocked with, if any.
	Of proto.Digest `json:"of,omitzero"`
	// At is when it was said, in UTC and milliseconds. Of two entries the later
	// one counts.
	At time.Time `json:"at"`
}

// latest is the time that no entry can be of. One that claims to be is taken
// for the oldest of all, since nothing could be later.
func latest() time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }

// oldest is the time of entries with none that can be.
func oldest() time.Time { return time.UnixMilli(0).UTC() }

// normal returns e as every member has it, whoever sent it and however.
func (e Entry) normal() Entry {
	e.Reason, e.By = clean(e.Reason, maxReason), clean(e.By, maxBy)
	e.At = e.At.UTC().Truncate(time.Millisecond)
	if !e.At.Before(latest()) || e.At.Before(oldest()) {
		e.At = oldest()
	}
	if e.Of == e.Digest {
		e.Of = proto.Digest{}
	}
	return e
}

// newer reports whether e replaces old. It is an order: two entries that differ
// are one newer than the other, whoever compares them. At the same moment
// blocked counts more.
func (e Entry) newer(old Entry) bool {
	blocked := func(e Entry) int {
		if e.Blocked {
			return 1
		}
		return 0
	}
	return cmp.Or(
		e.At.Compare(old.At),
		cmp.Compare(blocked(e), blocked(old)),
		strings.Compare(e.By, old.By),
		strings.Compare(e.Reason, old.Reason),
		strings.Compare(e.Of.String(), old.Of.String()),
	) > 0
}

// after returns the time of an entry that is said now and replaces e, even if
// e is of a clock that is ahead of this one.
func (e Entry) after(now time.Time) time.Time {
	return later(now.UTC().Truncate(time.Millisecond), e.At.Add(time.Millisecond))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// of returns the entries with which an index blocks its parts. Every member
// makes the same of them.
func (e Entry) of(parts []proto.Digest) []Entry {
	if !e.Blocked || !e.Of.IsZero() {
		return nil
	}
	all := make([]Entry, 0, len(parts))
	for _, p := range parts {
		part := e
		part.Digest, part.Of = p, e.Digest
		all = append(all, part)
	}
	return all
}

// why says for a person why the digest is blocked.
func (e Entry) why() string {
	s := "it was blocked"
	if e.By != "" {
		s += " at " + e.By
	}
	s += " on " + e.At.Format(time.DateOnly)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// clean makes one line of a text and cuts it to n bytes.
func clean(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.TrimSpace(s)
	for len(s) > n {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return strings.TrimSpace(s)
}
