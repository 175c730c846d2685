package sim

import (
	"runtime"
	"unsafe"

	"github.com/shoal-project/shoal/bench/report"
)

// memory finds out how much heap the books take: what it is after a collection,
// less what it was before there were books, less what the simulation itself has
// taken since. It looks when the nodes have next to nothing, half, and nearly
// all.
type memory struct {
	before, own int64
	looks       int
	most        int64
}

// looks is when memory is looked at, in 64ths of all bytes.
var looks = [...]int64{1, 32, 60}

func (m *memory) start(s *sim) { m.own, m.before = s.weight(), heap() }

func (m *memory) look(s *sim) {
	if m.looks == len(looks) || s.moved < s.o.Size*int64(s.o.Nodes)/64*looks[m.looks] {
		return
	}
	m.looks++
	m.most = max(m.most, heap()-m.before-(s.weight()-m.own))
}

// heap returns the bytes that are in use.
func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// weight returns the bytes of those of the simulation's own structures that
// grow while it runs.
func (s *sim) weight() int64 {
	const pointer = int64(unsafe.Sizeof(uintptr(0)))
	n := s.made*int64(unsafe.Sizeof(flow{})) + pointer*int64(cap(s.spare)+cap(s.net.work)+cap(s.net.moved))
	n += int64(cap(s.net.heap)) * int64(unsafe.Sizeof(entry{}))
	n += int64(len(s.near.ring)+len(s.far.ring)) * int64(unsafe.Sizeof(order{}))
	n += int64(len(s.starts.ring)+len(s.fresh.ring)) * int64(unsafe.Sizeof(starting{}))
	n += int64(len(s.growths.ring)) * int64(unsafe.Sizeof(growing{}))
	// A map has room for about twice what is in it: the key, the list, its one element.
	n += s.connected * (int64(unsafe.Sizeof(connection{})) + 2*5*pointer)
	for _, v := range s.servers {
		n += int64(len(v.near.ring)+len(v.far.ring)) * int64(unsafe.Sizeof(word{}))
	}
	for _, h := range s.hosts {
		n += pointer * int64(cap(h.flows)+cap(h.up.flows)+cap(h.down.flows)+len(h.met))
		n += int64(cap(h.report.Progress)) * int64(unsafe.Sizeof(report.Point{}))
	}
	return n
}
