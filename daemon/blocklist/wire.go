package blocklist

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

const (
	// MaxNote is the most bytes that a note has.
	MaxNote = 1024
	// MaxState is the most bytes that State returns and Merge reads.
	MaxState = 4 << 20
)

// Note takes in what a member told. It tells nobody: the gossip passes notes on
// by itself, and if each member did too, a fleet of n would send n times as many.
func (l *List) Note(note []byte) {
	if err := l.note(note); err != nil {
		l.log.Debug("a note was not understood", "error", err)
	}
}

func (l *List) note(data []byte) error {
	if len(data) > MaxNote {
		return fmt.Errorf("blocklist: a note of %d bytes, at most %d are accepted", len(data), MaxNote)
	}
	var e Entry
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("blocklist: note: %w", err)
	}
	if e.Digest.IsZero() {
		return errors.New("blocklist: note of no digest")
	}
	l.heard([]Entry{e})
	return nil
}

// State returns what is known, for the Merge of another member, the latest as
// far as it fits MaxState; nil if there is nothing. The caller must not change
// it.
func (l *List) State() []byte {
	l.mu.RLock()
	state, changes := l.state, l.changes
	var all []Entry
	if state == nil {
		all = slices.Collect(maps.Values(l.entries))
	}
	l.mu.RUnlock()
	if len(all) == 0 {
		return state
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(b.At.Compare(a.At), strings.Compare(a.Digest.String(), b.Digest.String()))
	})
	state = encodeList(all, l.room) // without the lock, which every request takes
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changes == changes {
		l.state = state
	}
	return state
}

// Merge takes in the State of another member. What was news is told, if it is
// little: the note of it seems not to have reached this part of the fleet.
func (l *List) Merge(state []byte) {
	if err := l.merge(state); err != nil {
		l.log.Debug("a member's blocklist was not understood to its end", "error", err)
	}
}

func (l *List) merge(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if len(data) > MaxState {
		return fmt.Errorf("blocklist: a state of %d bytes, at most %d are accepted", len(data), MaxState)
	}
	entries, skipped, err := decode(bytes.NewReader(data))
	if news := l.heard(entries); len(news) <= told {
		l.tell(news)
	}
	if skipped > 0 {
		l.log.Debug("entries of a member's blocklist were not understood", "entries", skipped)
	}
	if err != nil {
		return fmt.Errorf("blocklist: state: %w", err)
	}
	return nil
}

// heard takes in what others said, and returns what was news. What follows from
// it here, the parts of an index that maybe only this node knows, is taken in
// too; the others find out by themselves or with the State.
func (l *List) heard(entries []Entry) (news []Entry) {
	for i, e := range entries {
		entries[i] = e.normal()
	}
	l.mu.Lock()
	news = l.setAll(entries)
	l.mu.Unlock()
	for _, e := range news {
		if !e.Blocked || !e.Of.IsZero() {
			continue
		}
		if parts := l.parts(e.Digest); len(parts) > 0 {
			l.mu.Lock()
			l.setAll(l.with(e, parts))
			l.mu.Unlock()
		}
	}
	return news
}

// tell sends each entry to some members.
func (l *List) tell(entries []Entry) {
	if l.cfg.Tell == nil {
		return
	}
	for _, e := range entries {
		l.cfg.Tell(encode(e))
	}
}

// encode returns an entry or a list of them as it goes over the network.
func encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // or a reason of < would take six times its size
	// It fails on nothing that an Entry can have: its time is below the year
	// 10000, and a digest is text.
	_ = enc.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n")
}

// encodeList returns as many entries as fit into so many bytes.
func encodeList(entries []Entry, room int) []byte {
	b := []byte("[")
	for i, e := range entries {
		line := encode(e)
		if len(b)+len(line)+2 > room {
			break
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, line...)
	}
	return append(b, ']')
}

// decode reads a list of entries one by one, so that what a short text can
// claim to have is never held, and at most MaxEntries. What is no entry, such
// as one with a hash of a later version, is skipped.
func decode(r io.Reader) (entries []Entry, skipped int, err error) {
	d := json.NewDecoder(r)
	t, err := d.Token()
	if err != nil {
		return nil, 0, err
	}
	if t != json.Delim('[') {
		return nil, 0, errors.New("it is not a list")
	}
	for d.More() && len(entries) < MaxEntries {
		var e Entry
		err := d.Decode(&e)
		var syntax *json.SyntaxError
		switch {
		case errors.As(err, &syntax), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return entries, skipped, err
		case err != nil || e.Digest.IsZero():
			skipped++
		default:
			entries = append(entries, e)
		}
	}
	if d.More() {
		return entries, skipped, nil
	}
	_, err = d.Token()
	return entries, skipped, err
}
