package veil

import (
	"slices"
	"sync"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// maxNames bounds the private digests that are remembered by their aliases. One
// more, and another is forgotten until it is named again.
const maxNames = 1 << 18

// Config says what is private and by which secrets it is hidden.
type Config struct {
	// Secrets returns the cluster secrets that are valid now, the one to send
	// with first. Without any, nobody else can make sense of what is private
	// here. It is called often and must not block; the slices may not be changed
	// later on.
	Secrets func() [][]byte
	// Self is this node's peer ID.
	Self string
	// Private reports whether a digest is known from upstreams only that ask who
	// wants it. Nil: nothing is private. It is called often and must not block.
	Private func(proto.Digest) bool
}

// A Veil gives private digests other names. Its methods can be called at the
// same time.
type Veil struct {
	// immutable
	cfg   Config
	alone []byte // the secret in place of none
	now   func() time.Time
	most  int // maxNames

	// mu protects the fields below. Config.Private is not called with it held.
	mu    sync.Mutex
	keys  []*keys
	names map[proto.Digest]*naming      // of private digests
	reals map[proto.Digest]proto.Digest // alias → private digest
	told  map[proto.Digest]bool         // said to be private by a note
	clear map[proto.Digest]bool         // a seed brings it from an origin that asks nobody
}

// A naming is what a private digest is called.
type naming struct {
	keys    []*keys // by which it was named last
	alias   proto.Digest
	aliases []proto.Digest // all that were ever told, alias among them
}

// New returns a Veil that has named nothing yet.
func New(cfg Config) *Veil {
	return &Veil{
		cfg: cfg, alone: randomSecret(), now: time.Now, most: maxNames,
		names: make(map[proto.Digest]*naming),
		reals: make(map[proto.Digest]proto.Digest),
		told:  make(map[proto.Digest]bool),
		clear: make(map[proto.Digest]bool),
	}
}

// private reports what Config.Private says of d.
func (v *Veil) private(d proto.Digest) bool { return v.cfg.Private != nil && v.cfg.Private(d) }

// hidden reports whether d is private, of which Config.Private says private;
// v.mu is held.
func (v *Veil) hidden(d proto.Digest, private bool) bool {
	return v.told[d] || private && !v.clear[d]
}

// Name returns what the fleet calls d: itself, or an alias if it is private,
// which Real then understands until Forget.
func (v *Veil) Name(d proto.Digest) proto.Digest {
	private := v.private(d)
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.hidden(d, private) {
		return d
	}
	return v.remember(d)
}

// remember returns the alias of d, and sees to it that those by all current
// keys are known; v.mu is held.
func (v *Veil) remember(d proto.Digest) proto.Digest {
	current := v.current()
	n := v.names[d]
	if n != nil && &n.keys[0] == &current[0] {
		return n.alias
	}
	if n == nil {
		if len(v.names) >= v.most {
			for other := range v.names {
				v.forget(other)
				break
			}
		}
		n = &naming{}
		v.names[d] = n
	}
	n.keys, n.alias = current, current[0].aliasOf(d)
	for _, k := range current {
		if alias := k.aliasOf(d); !slices.Contains(n.aliases, alias) {
			n.aliases = append(n.aliases, alias)
			v.reals[alias] = d
		}
	}
	return n.alias
}

// Forget drops what is known of d, once nothing of it is here any more.
func (v *Veil) Forget(d proto.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget(d)
}

func (v *Veil) forget(d proto.Digest) {
	if n := v.names[d]; n != nil {
		for _, alias := range n.aliases {
			delete(v.reals, alias)
		}
	}
	delete(v.names, d)
	delete(v.told, d)
	delete(v.clear, d)
}

// Published notes that d is not private any more, whatever a note has said. It
// keeps its aliases for those who know it by them.
func (v *Veil) Published(d proto.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.told, d)
}

// Aliases returns all names by which the fleet may know d: itself if it is not
// private, and the aliases that were told of it. It is for taking things back.
func (v *Veil) Aliases(d proto.Digest) []proto.Digest {
	private := v.private(d)
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []proto.Digest
	if n := v.names[d]; n != nil {
		out = slices.Clone(n.aliases)
	}
	if !v.hidden(d, private) {
		out = append(out, d)
	}
	return out
}

// Held returns the blobs by the names under which to tell the fleet that they
// are here: a private one by the aliases of all current secrets, since others
// may be at another step of a change.
func (v *Veil) Held(blobs ...proto.Blob) []proto.Blob {
	private := make([]bool, len(blobs))
	for i, b := range blobs {
		private[i] = v.private(b.Digest)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	current := v.current()
	out := make([]proto.Blob, 0, len(blobs))
	for i, b := range blobs {
		if !v.hidden(b.Digest, private[i]) {
			out = append(out, b)
			continue
		}
		out = append(out, proto.Blob{Digest: v.remember(b.Digest), Size: b.Size})
		for _, k := range current[1:] {
			out = append(out, proto.Blob{Digest: k.aliasOf(b.Digest), Size: b.Size})
		}
	}
	return out
}

// Real returns the digest that is called name: the private digest of an alias,
// or a digest that is not private itself. A private digest in the clear is not
// found.
func (v *Veil) Real(name proto.Digest) (proto.Digest, bool) {
	private := v.private(name)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.current() // the aliases by a secret that has come since
	if d, ok := v.reals[name]; ok {
		return d, true
	}
	if v.hidden(name, private) {
		return proto.Digest{}, false
	}
	return name, true
}

// Ask returns what to ask a peer for to get d, and the capability to show; both
// as peer.Config.Name wants them.
func (v *Veil) Ask(d proto.Digest) (name proto.Digest, capability string) {
	if name = v.Name(d); name != d {
		capability = v.Capability(d)
	}
	return name, capability
}

// Give returns the digest that a peer asks for by a name, if it may have it;
// as peer.Config.Real wants it.
func (v *Veil) Give(name proto.Digest, asker, capability string) (proto.Digest, bool) {
	d, ok := v.Real(name)
	if ok && d != name {
		ok = v.Admit(d, asker, capability) == nil
	}
	if !ok {
		return proto.Digest{}, false
	}
	return d, true
}
