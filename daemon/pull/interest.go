package pull

import (
	"context"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// interest is who wants the blob of a pull, for Config.Abandon. The puller's mu
// protects it.
type interest struct {
	kept    bool  // it was started or seeded: it goes on to its end
	readers int   // whose contexts have not ended
	given   bool  // given up; nobody joins it any more
	next    *pull // of those who came after that; it runs when this one is over
}

// count counts a reader of run until ctx ends. p.mu is held.
func (p *Puller) count(ctx context.Context, run *pull) {
	if !p.cfg.Abandon {
		return
	}
	run.readers++
	context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if run.readers--; run.readers == 0 {
			select {
			case run.left <- struct{}{}:
			default:
			}
		}
	})
}

// abandon gives run up if nobody wants it, and reports whether it did. From then
// on it is only waited for.
func (p *Puller) abandon(run *pull) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	run.given = run.readers == 0 && !run.kept
	return run.given
}

func (r *pull) givenUp() bool {
	r.puller.mu.Lock()
	defer r.puller.mu.Unlock()
	return r.given
}

// follow returns the pull that runs when r, which was given up, is over. It
// joins its swarm no earlier: a swarm knows one session of a node for a blob.
// The puller's mu is held.
func (r *pull) follow(cb *cache.Blob, o proto.Origin, eager, seed bool) (*pull, error) {
	if r.next == nil {
		own, err := r.puller.cfg.Cache.Blob(cb.Blob())
		if err != nil {
			return nil, err
		}
		r.next = newPull(r.puller, own, o, seed)
	}
	r.next.addOrigin(o)
	if eager {
		r.next.kept = true
		r.next.want()
	}
	return r.next, nil
}

// maxEnded bounds the pulls that a Puller remembers the source of, for those who
// read the blob to its end a moment later.
const maxEnded = 1024

// ended are the sources of the latest pulls that are over.
type ended struct {
	from map[proto.Digest]string
	ring []proto.Digest
	at   int
}

func (e *ended) add(run *pull) {
	d := run.b.Digest
	if e.from == nil {
		e.from = make(map[proto.Digest]string)
	}
	if _, ok := e.from[d]; !ok {
		if len(e.ring) < maxEnded {
			e.ring = append(e.ring, d)
		} else {
			delete(e.from, e.ring[e.at])
			e.ring[e.at] = d
			e.at = (e.at + 1) % maxEnded
		}
	}
	e.from[d] = run.source()
}

// source says where most of what has come in is from.
func (r *pull) source() string {
	switch origin, peers := r.fromOrigin.Load(), r.fromPeers.Load(); {
	case origin+peers == 0:
		return ""
	case peers > origin:
		return "peer"
	}
	return "origin"
}

// SourceOf says where most of the bytes are from that the pull of a blob has
// brought, one that runs or was over lately: "origin", "peer", or "" if nothing
// is known.
func (p *Puller) SourceOf(d proto.Digest) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if run := p.pulls[d]; run != nil {
		return run.source()
	}
	return p.ended.from[d]
}
