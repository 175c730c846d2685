package veil

import "github.com/shoal-project/shoal/proto"

// A Swarm is a pull's word with the scheduler of its blob: a scheduler.Session,
// or one behind the veil.
type Swarm interface {
	Events() <-chan proto.Message
	Report(m proto.Message)
	Close(b proto.Blob, whole bool)
}

// Join enters the pull of d under the name that the fleet has for it. state is
// what the pull says of itself, in the clear; sealed says whether its origin may
// be told to seeds (see Origin); enter joins under a name. Of a blob that is not
// private nothing is changed or wrapped.
func (v *Veil) Join(d proto.Digest, state func() *proto.Join, sealed func(proto.Origin) bool,
	enter func(name proto.Digest, state func() *proto.Join) Swarm) Swarm {
	name := v.Name(d)
	if name == d {
		swarm := enter(d, state)
		if v.isClear(d) {
			return &clearSession{veil: v, Swarm: swarm}
		}
		return swarm
	}
	return &session{name: name, swarm: enter(name, func() *proto.Join {
		j := state()
		j.Origin = v.Origin(j.Blob, j.Origin, sealed(j.Origin))
		if j.Origin.Upstream != Hidden { // it has become public since, and its name here has not
			j.Origin = proto.Origin{Upstream: Hidden}
		}
		j.Blob.Digest = name
		return j
	})}
}

// A session is the pull of a private blob. Its name stays, whatever happens to
// the secrets and to the blob meanwhile: the scheduler knows no other.
type session struct {
	name  proto.Digest
	swarm Swarm
}

func (s *session) Events() <-chan proto.Message { return s.swarm.Events() }
func (s *session) Report(m proto.Message)       { s.swarm.Report(rename(m, s.name)) }
func (s *session) Close(b proto.Blob, whole bool) {
	s.swarm.Close(proto.Blob{Digest: s.name, Size: b.Size}, whole)
}

func (v *Veil) isClear(d proto.Digest) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.clear[d]
}

// A clearSession is a seed's pull of a blob that would be private here, but that
// it was called for in the clear.
type clearSession struct {
	Swarm
	veil *Veil
}

func (s *clearSession) Close(b proto.Blob, whole bool) {
	s.Swarm.Close(b, whole)
	if !whole { // nobody has shown that it is public
		s.veil.unclear(b.Digest)
	}
}

// rename returns a copy of m about name.
func rename(m proto.Message, name proto.Digest) proto.Message {
	switch m := m.(type) {
	case *proto.Join:
		out := *m
		out.Blob.Digest = name
		return &out
	case *proto.Done:
		out := *m
		out.Digest = name
		return &out
	case *proto.Fail:
		out := *m
		out.Digest = name
		return &out
	case *proto.Near:
		out := *m
		out.Digest = name
		return &out
	case *proto.Await:
		out := *m
		out.Digest = name
		return &out
	case *proto.Part:
		out := *m
		out.Digest = name
		return &out
	case *proto.Decline:
		out := *m
		out.Digest = name
		return &out
	case *proto.Sums:
		out := *m
		out.Digest = name
		return &out
	}
	return m
}
