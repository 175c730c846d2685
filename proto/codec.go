package proto

// The fields of every message, in the order in which they are on the wire.
// Bounds are checked here, so that no receiver sees a number that a sender of
// this protocol could not have meant.

// maxIndex bounds chunk indexes and counts.
const maxIndex = MaxBlob / MaxChunk

func (*Hello) kind() kind { return kindHello }
func (m *Hello) encode(e *encoder) {
	e.int(m.Min)
	e.int(m.Max)
	e.text(m.Node.ID)
	e.text(m.Node.Name)
	e.text(m.Node.Zone)
	e.int(int(m.Node.Roles))
	e.text(m.Node.Addr)
}
func (m *Hello) decode(d *decoder) {
	m.Min, m.Max = d.int(1<<16), d.int(1<<16)
	m.Node = Member{ID: d.text(), Name: d.text(), Zone: d.text(), Roles: Role(d.int(255)), Addr: d.text()}
}

func (*Welcome) kind() kind          { return kindWelcome }
func (m *Welcome) encode(e *encoder) { e.int(m.Version) }
func (m *Welcome) decode(d *decoder) { m.Version = d.int(1 << 16) }

func (*Bye) kind() kind          { return kindBye }
func (m *Bye) encode(e *encoder) { e.text(m.Reason) }
func (m *Bye) decode(d *decoder) { m.Reason = d.text() }

func (*Ping) kind() kind          { return kindPing }
func (m *Ping) encode(e *encoder) { e.uint(m.Seq) }
func (m *Ping) decode(d *decoder) { m.Seq = d.uint() }

func (*Pong) kind() kind          { return kindPong }
func (m *Pong) encode(e *encoder) { e.uint(m.Seq) }
func (m *Pong) decode(d *decoder) { m.Seq = d.uint() }

func (*Hold) kind() kind { return kindHold }
func (m *Hold) encode(e *encoder) {
	e.int(len(m.Blobs))
	for _, b := range m.Blobs {
		e.blob(b)
	}
}
func (m *Hold) decode(d *decoder) {
	n := d.int(HoldsPerFrame)
	for i := 0; i < n && d.err == nil; i++ {
		m.Blobs = append(m.Blobs, d.blob())
	}
}

func (*Join) kind() kind { return kindJoin }
func (m *Join) encode(e *encoder) {
	e.blob(m.Blob)
	e.origin(m.Origin)
	e.set(m.Have)
	e.set(m.Flight)
	e.int(m.Await + 1)
	e.bool(m.Seed)
}
func (m *Join) decode(d *decoder) {
	m.Blob, m.Origin = d.blob(), d.origin()
	m.Have, m.Flight = d.set(), d.set()
	m.Await, m.Seed = d.int(maxIndex)-1, d.bool()
	if n := m.Blob.Chunks(); m.Have.Next(n) >= 0 || m.Flight.Next(n) >= 0 {
		d.fail("set has chunks that the blob has not")
	}
}

func (*Done) kind() kind { return kindDone }
func (m *Done) encode(e *encoder) {
	e.digest(m.Digest)
	e.uint(m.Lease)
	e.int(m.Index)
	e.sum(m.Sum)
	e.dur(m.Took)
}
func (m *Done) decode(d *decoder) {
	m.Digest, m.Lease, m.Index = d.digest(), d.uint(), d.int(maxIndex)
	m.Sum, m.Took = d.sum(), d.dur()
}

func (*Fail) kind() kind { return kindFail }
func (m *Fail) encode(e *encoder) {
	e.digest(m.Digest)
	e.uint(m.Lease)
	e.int(int(m.Cause))
}
func (m *Fail) decode(d *decoder) {
	m.Digest, m.Lease, m.Cause = d.digest(), d.uint(), Cause(d.int(255))
}

func (*Near) kind() kind          { return kindNear }
func (m *Near) encode(e *encoder) { e.digest(m.Digest); e.uint(m.Lease) }
func (m *Near) decode(d *decoder) { m.Digest, m.Lease = d.digest(), d.uint() }

func (*Await) kind() kind          { return kindAwait }
func (m *Await) encode(e *encoder) { e.digest(m.Digest); e.int(m.Index) }
func (m *Await) decode(d *decoder) { m.Digest, m.Index = d.digest(), d.int(maxIndex) }

func (*Part) kind() kind          { return kindPart }
func (m *Part) encode(e *encoder) { e.digest(m.Digest) }
func (m *Part) decode(d *decoder) { m.Digest = d.digest() }

func (*Decline) kind() kind          { return kindDecline }
func (m *Decline) encode(e *encoder) { e.digest(m.Digest); e.text(m.Reason) }
func (m *Decline) decode(d *decoder) { m.Digest, m.Reason = d.digest(), d.text() }

func (*Sums) kind() kind { return kindSums }
func (m *Sums) encode(e *encoder) {
	e.digest(m.Digest)
	e.int(m.First)
	e.sums(m.Sums)
}
func (m *Sums) decode(d *decoder) {
	m.Digest, m.First, m.Sums = d.digest(), d.int(maxIndex), d.sums()
}

func (*Lease) kind() kind { return kindLease }
func (m *Lease) encode(e *encoder) {
	e.uint(m.ID)
	e.digest(m.Digest)
	e.int(m.First)
	e.int(m.Count)
	e.text(m.Source)
	e.text(m.Addr)
	e.dur(m.Within)
	e.sums(m.Sums)
	e.dur(m.Early)
}
func (m *Lease) decode(d *decoder) {
	m.ID, m.Digest, m.First, m.Count = d.uint(), d.digest(), d.int(maxIndex), d.int(maxIndex)
	m.Source, m.Addr, m.Within, m.Sums = d.text(), d.text(), d.dur(), d.sums()
	m.Early = d.dur()
	if len(m.Sums) != 0 && len(m.Sums) != m.Count {
		d.fail("lease of %d chunks with %d sums", m.Count, len(m.Sums))
	}
}

func (*Revoke) kind() kind          { return kindRevoke }
func (m *Revoke) encode(e *encoder) { e.digest(m.Digest); e.uint(m.Lease) }
func (m *Revoke) decode(d *decoder) { m.Digest, m.Lease = d.digest(), d.uint() }

func (*Call) kind() kind          { return kindCall }
func (m *Call) encode(e *encoder) { e.blob(m.Blob); e.origin(m.Origin) }
func (m *Call) decode(d *decoder) { m.Blob, m.Origin = d.blob(), d.origin() }

func (*Ask) kind() kind          { return kindAsk }
func (m *Ask) encode(e *encoder) { e.digest(m.Digest) }
func (m *Ask) decode(d *decoder) { m.Digest = d.digest() }
