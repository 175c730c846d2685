package scheduler

// choice is the best of the holders that were considered.
type choice struct {
	book  *Book
	part  *part
	chunk int
	cross bool // other zones may serve it
	// spareSeeds: no seed is to serve it.
	spareSeeds bool
	holders    []uint64
	seen       int
	source     *node
	eta        float64
}

func (o *choice) consider(sp *part) {
	if sp == o.part || !bitAt(o.holders, sp.slot) || !o.cross && sp.node.zone != o.part.node.zone ||
		o.spareSeeds && sp.node.seeds() {
		return
	}
	o.seen++
	if eta := o.book.eta(o.part, sp.node); o.source == nil || eta < o.eta {
		o.source, o.eta = sp.node, eta
	}
}

// eta returns when p would have a chunk from src, in seconds, with a little
// that is random so that equals share the load.
func (b *Book) eta(p *part, src *node) float64 {
	rate := src.rate
	if rate == 0 {
		rate = max(b.typical, 1)
	}
	chunk := float64(p.swarm.blob.ChunkSize())
	eta := float64(src.used+1) * chunk / rate
	if src.zone != p.node.zone {
		// As far as in simulation: three quarters of a typical chunk time.
		eta += 0.75 * chunk / max(b.typical, 1) * float64(distance(src.member.Zone, p.node.member.Zone))
	}
	if src.strikes > 0 {
		eta *= 4 // it has just failed somebody: anybody else first
	}
	return eta * (1 + 0.01*b.rng.Float64())
}
