package blocklist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// MaxEntries is how many digests a List knows, blocked or no longer.
const MaxEntries = 10_000

// told is up to how many entries are told one by one, to members those that came
// by Merge, and to people in the log. Of more, the members hear by Merge too.
const told = 16

var (
	// ErrNotBlocked is wrapped by the error of Unblock.
	ErrNotBlocked = errors.New("not blocked")
	// ErrFull is wrapped by the error of Block.
	ErrFull = errors.New("the blocklist is full")
	// ErrInvalid is wrapped by the error of what names no digest.
	ErrInvalid = errors.New("neither a digest nor an image")

	errLatest = errors.New("what is known of it claims to be of the year 2100, and nothing can be later: stop all nodes and remove their blocklist.json")
)

// Config is what a List needs. Dir must be set.
type Config struct {
	// Dir is where blocklist.json is. It must exist.
	Dir string
	// Self is the name of this node, for people.
	Self string
	// Tell sends a note of at most MaxNote bytes to all members, which give it
	// to their Note; it may be lost. It must not block. Nil tells nobody.
	Tell func(note []byte)
	// Parts returns what is known here of the image manifests that an index
	// names; nothing for any other digest. Nil knows none.
	Parts func(index proto.Digest) []proto.Digest
	// Resolve returns the digest of an image by its tag. Nil resolves none.
	Resolve func(ctx context.Context, image string) (proto.Digest, error)
	// Log gets a line for each digest that is blocked or no longer. Nil is
	// silent.
	Log *slog.Logger
}

// A List is the digests that are blocked in the fleet, as far as this node has
// heard. Its methods may be called concurrently.
type List struct {
	// immutable
	cfg  Config
	path string
	log  *slog.Logger
	most int // entries: MaxEntries
	room int // bytes of a state: MaxState
	// dirty has an element while the file is older than the list.
	dirty chan struct{}

	mu sync.RWMutex // protects the fields below
	// entries by digest, no more than most of them. Those that are no longer blocked
	// stay, so that older news does not block them again.
	entries map[proto.Digest]Entry
	changes int64  // counts what was set in entries
	state   []byte // what State returns; nil if it is to be made anew
	refused bool   // a line in the log said that the list is full

	saving sync.Mutex // held while the file is written; protects saved
	saved  int64      // changes that the file has
}

// New reads the list of an earlier process from the file and returns it. The
// error says what to do if the file is damaged.
func New(cfg Config) (*List, error) {
	l := &List{
		cfg: cfg, path: path(cfg.Dir), log: cfg.Log, most: MaxEntries, room: MaxState,
		dirty: make(chan struct{}, 1), entries: make(map[proto.Digest]Entry),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	entries, err := load(l.path)
	if err != nil {
		return nil, fmt.Errorf("blocklist: %w; what it has is not guessed at. Move it away to start without it: members that run will tell this node what is blocked", err)
	}
	for _, e := range entries {
		l.set(e)
	}
	l.saved = l.changes
	return l, nil
}

// Blocked reports whether a digest is blocked, and why, for a person.
func (l *List) Blocked(d proto.Digest) (reason string, blocked bool) {
	l.mu.RLock()
	e := l.entries[d]
	l.mu.RUnlock()
	if !e.Blocked {
		return "", false
	}
	return e.why(), true
}

// List returns what is blocked, the latest first.
func (l *List) List() []Entry {
	l.mu.RLock()
	defer l.mu.RUnlock()
	all := []Entry{}
	for _, e := range l.entries {
		if e.Blocked {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(b.At.Compare(a.At), strings.Compare(a.Digest.String(), b.Digest.String()))
	})
	return all
}

// Block blocks a digest, and with an index its image manifests that are known
// here, on this node at once and on the others as soon as they hear of it. It
// returns what is blocked by it, the digest first. With an error that does not
// wrap ErrFull or ErrInvalid, it is blocked but will not be after a restart.
func (l *List) Block(d proto.Digest, reason string) ([]Entry, error) {
	if d.IsZero() {
		return nil, fmt.Errorf("block: %w", ErrInvalid)
	}
	e := Entry{Digest: d, Blocked: true, Reason: clean(reason, maxReason), By: clean(l.cfg.Self, maxBy)}
	parts := l.parts(d)
	l.mu.Lock()
	for _, known := range append([]proto.Digest{d}, parts...) {
		e.At = later(e.At, l.entries[known].after(time.Now()))
	}
	if !e.At.Before(latest()) {
		l.mu.Unlock()
		return nil, fmt.Errorf("block %s: %w", d, errLatest)
	}
	if _, known := l.entries[d]; !known && len(l.entries) >= l.most && !l.makeRoom() {
		l.mu.Unlock()
		return nil, fmt.Errorf("block %s: %w: it has %d digests, which is all that it may; unblock what is no longer needed", d, ErrFull, l.most)
	}
	changed := l.setAll(append([]Entry{e}, l.with(e, parts)...))
	l.mu.Unlock()
	l.tell(changed)
	if err := l.save(); err != nil {
		return changed, fmt.Errorf("%s is blocked, but will not be when this node is started again: %w", d, err)
	}
	return changed, nil
}

// Unblock takes back a Block, also of what was blocked with an index, unless it
// is in another that is blocked. It returns what is no longer blocked. The
// error wraps ErrNotBlocked, or says that it holds until a restart only.
func (l *List) Unblock(d proto.Digest) ([]Entry, error) {
	others := l.partsOfOthers(d)
	l.mu.Lock()
	if !l.entries[d].Blocked {
		l.mu.Unlock()
		return nil, fmt.Errorf("unblock %s: it is %w; `shoal blocked` lists what is", d, ErrNotBlocked)
	}
	free := []Entry{l.entries[d]}
	for _, e := range l.entries {
		if e.Blocked && e.Of == d {
			free = append(free, e)
		}
	}
	for i, e := range free {
		at := e.after(time.Now())
		if !at.Before(latest()) {
			l.mu.Unlock()
			return nil, fmt.Errorf("unblock %s: %w", d, errLatest)
		}
		if other, blocked := others[e.Digest]; blocked && e.Digest != d {
			e.Of, e.At = other, at // it stays blocked, with the other
			free[i] = e
			continue
		}
		free[i] = Entry{Digest: e.Digest, By: clean(l.cfg.Self, maxBy), Of: e.Of, At: at}
	}
	changed := l.setAll(free)
	l.mu.Unlock()
	l.tell(changed)
	if err := l.save(); err != nil {
		return changed, fmt.Errorf("%s is no longer blocked, but will be when this node is started again: %w", d, err)
	}
	return slices.DeleteFunc(changed, func(e Entry) bool { return e.Blocked }), nil
}

// BlockImage is Block of a digest as text, of an image with a digest, or of one
// with a tag, which is resolved. It blocks for as long as that takes.
func (l *List) BlockImage(ctx context.Context, what, reason string) ([]Entry, error) {
	d, err := l.digest(ctx, what)
	if err != nil {
		return nil, err
	}
	return l.Block(d, reason)
}

// UnblockImage is Unblock, as BlockImage is Block.
func (l *List) UnblockImage(ctx context.Context, what string) ([]Entry, error) {
	d, err := l.digest(ctx, what)
	if err != nil {
		return nil, err
	}
	return l.Unblock(d)
}

// digest returns the digest that a person has named.
func (l *List) digest(ctx context.Context, what string) (proto.Digest, error) {
	text := what
	image, named, isImage := strings.Cut(what, "@")
	if isImage && image != "" {
		text = named
	}
	d, err := proto.ParseDigest(text)
	switch {
	case err == nil:
		return d, nil
	case isImage, strings.HasPrefix(what, "sha256:"), strings.HasPrefix(what, "sha512:"):
		return proto.Digest{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	case l.cfg.Resolve == nil:
		return proto.Digest{}, fmt.Errorf("%.300q is %w with one: name it by its digest", what, ErrInvalid)
	}
	if d, err = l.cfg.Resolve(ctx, what); err != nil {
		return proto.Digest{}, fmt.Errorf("which digest is %.300s? %w; name it by its digest to block it all the same", what, err)
	}
	return d, nil
}

// parts returns the image manifests of an index that are known here.
func (l *List) parts(d proto.Digest) []proto.Digest {
	if l.cfg.Parts == nil {
		return nil
	}
	parts := l.cfg.Parts(d)
	return slices.DeleteFunc(slices.Clone(parts), func(p proto.Digest) bool { return p.IsZero() || p == d })
}

// partsOfOthers returns what is in an index that is blocked in its own right
// and is not d, with that index.
func (l *List) partsOfOthers(d proto.Digest) map[proto.Digest]proto.Digest {
	all := make(map[proto.Digest]proto.Digest)
	for _, e := range l.List() {
		if e.Of.IsZero() && e.Digest != d {
			for _, p := range l.parts(e.Digest) {
				all[p] = e.Digest
			}
		}
	}
	return all
}

// with returns the entries with which an index blocks its parts, but those that
// are blocked in their own right. Call it with mu held.
func (l *List) with(e Entry, parts []proto.Digest) []Entry {
	return slices.DeleteFunc(e.of(parts), func(part Entry) bool {
		old := l.entries[part.Digest]
		return old.Blocked && old.Of.IsZero()
	})
}

// setAll sets what is newer than what is known, and returns it. Call it with mu
// held.
func (l *List) setAll(entries []Entry) (changed []Entry) {
	for _, e := range entries {
		if l.set(e) {
			changed = append(changed, e)
		}
	}
	if len(changed) > told {
		l.log.Info("digests were blocked or unblocked; shoal blocked lists them", "digests", len(changed))
	} else {
		for _, e := range changed {
			verb := "unblocked"
			if e.Blocked {
				verb = "blocked"
			}
			l.log.Info("digest was "+verb, "digest", e.Digest, "by", e.By, "reason", e.Reason)
		}
	}
	if len(changed) > 0 {
		select {
		case l.dirty <- struct{}{}:
		default:
		}
	}
	return changed
}

// set sets an entry if it is newer than what is known of its digest.
func (l *List) set(e Entry) bool {
	old, known := l.entries[e.Digest]
	if known && !e.newer(old) {
		return false
	}
	if !known && len(l.entries) >= l.most && (!e.Blocked || !l.makeRoom()) {
		if e.Blocked && !l.refused {
			l.refused = true
			l.log.Error("the blocklist is full: digests that were blocked elsewhere are not blocked here; unblock what is no longer needed", "digest", e.Digest)
		}
		return false
	}
	l.entries[e.Digest] = e
	l.changes++
	l.state = nil
	return true
}

// makeRoom forgets the oldest entry that is no longer blocked, if there is one.
func (l *List) makeRoom() bool {
	var oldest Entry
	for _, e := range l.entries {
		if !e.Blocked && (oldest.Digest.IsZero() || oldest.newer(e)) {
			oldest = e
		}
	}
	if oldest.Digest.IsZero() {
		return false
	}
	delete(l.entries, oldest.Digest)
	return true
}

// Run writes what Note and Merge bring into the file, until ctx ends, and then
// once more. Block and Unblock do not need it.
func (l *List) Run(ctx context.Context) error {
	for {
		var again <-chan time.Time
		select {
		case <-l.dirty:
			if err := l.save(); err != nil {
				l.log.Warn("blocklist not written: what was heard is lost if this process ends now", "error", err)
				again = time.After(retry)
			}
		case <-ctx.Done():
			return l.save()
		}
		if again == nil {
			continue
		}
		select {
		case <-again:
			select {
			case l.dirty <- struct{}{}:
			default:
			}
		case <-ctx.Done():
			return l.save()
		}
	}
}

// retry is after how long the file is tried to be written again.
const retry = 30 * time.Second

// save writes the file if it is not as the list is.
func (l *List) save() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.RLock()
	changes := l.changes
	entries := slices.Collect(maps.Values(l.entries))
	l.mu.RUnlock()
	if changes == l.saved {
		return nil
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	if err := store(l.path, entries); err != nil {
		return fmt.Errorf("keep blocklist: %w", err)
	}
	l.saved = changes
	return nil
}
