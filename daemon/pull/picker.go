package pull

import "github.com/shoal-project/shoal/proto"

// soloRun bounds the run of one request to the origin without a scheduler, in
// bytes: long enough to be worth a round trip, short enough that a reader that
// jumps ahead is not behind much else.
const soloRun = 8 << 20

// soloFetches is how many such requests a pull has under way.
const soloFetches = 4

// pick chooses what to fetch from the origin next when no scheduler says it:
// the first chunk that a reader waits for, else the first that is missing; from
// there on, as many missing chunks in a row as fit into soloRun bytes. taken
// are the chunks that are here or on their way. It returns false if there is
// nothing left to fetch.
func pick(b proto.Blob, taken, awaited proto.Set) (proto.Run, bool) {
	n := b.Chunks()
	first := -1
	for c := awaited.Next(0); c >= 0 && c < n; c = awaited.Next(c + 1) {
		if !taken.Has(c) {
			first = c
			break
		}
	}
	if first < 0 {
		first = taken.NextMissing(0, n)
	}
	if first < 0 {
		return proto.Run{}, false
	}
	limit := max(1, int(soloRun/b.ChunkSize()))
	count := 1
	for count < limit && first+count < n && !taken.Has(first+count) {
		count++
	}
	return proto.Run{Blob: b, First: first, Count: count}, true
}

// admit decides how many chunks of the run that pick chose may be asked for
// now; 0: none. flights is how many requests are under way, and nothing says
// that none has brought a chunk yet.
//
// While a reader waits for the very first chunk it has the line to itself: the
// other requests begin when it has that one. And where it begins to read inside
// the blob, the first request is short, so that a small Range of a large blob is
// answered for little more than its own bytes, whatever is done with the rest.
func admit(r proto.Run, awaited proto.Set, flights int, nothing bool) int {
	urgent := awaited.Has(r.First)
	switch {
	case flights == 0 && nothing && urgent && r.First > 0:
		return min(r.Count, firstChunks)
	case flights > 0 && nothing && awaited.Next(0) >= 0 && !urgent:
		return 0
	case flights >= soloFetches+soloExtra || flights >= soloFetches && !urgent:
		return 0
	}
	return r.Count
}
