package mirror

import (
	"encoding/json"
	"runtime"
	"sync"

	"github.com/shoal-project/shoal/proto"
)

// maxForeign bounds how many manifests are remembered as those of other
// platforms. An index has about ten.
const maxForeign = 4096

// foreign are the manifests of other platforms than this node's, of the indexes
// that were served last. containerd 2 fetches the manifests of all platforms
// and the layers of one; to start all of them would fetch each image several
// times over. Its methods may be called concurrently.
type foreign struct {
	mu   sync.Mutex            // protects the fields below
	is   map[proto.Digest]bool // the same as order
	last []proto.Digest        // a ring
	next int                   // in last, to be replaced
}

// learn notes what an index says. If it has nothing for this platform, whoever
// asks wants another one, and none of its manifests is foreign.
func (f *foreign) learn(index []byte) {
	var doc struct {
		Manifests []struct {
			Digest   proto.Digest
			Platform *struct{ OS, Architecture string }
		}
	}
	if json.Unmarshal(index, &doc) != nil {
		return // the gate says what is wrong
	}
	var others []proto.Digest
	ours := false
	for _, m := range doc.Manifests {
		switch {
		case m.Platform == nil:
		case m.Platform.OS == runtime.GOOS && m.Platform.Architecture == runtime.GOARCH:
			ours = true
		default:
			others = append(others, m.Digest)
		}
	}
	if !ours {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range others {
		f.add(d)
	}
}

// add puts a digest in, and takes the oldest out if there are too many. f.mu is
// held.
func (f *foreign) add(d proto.Digest) {
	if f.is[d] {
		return
	}
	if f.is == nil {
		f.is = make(map[proto.Digest]bool)
	}
	if len(f.last) < maxForeign {
		f.last = append(f.last, d)
	} else {
		delete(f.is, f.last[f.next])
		f.last[f.next] = d
		f.next = (f.next + 1) % maxForeign
	}
	f.is[d] = true
}

// has reports whether a manifest is known as that of another platform.
func (f *foreign) has(d proto.Digest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.is[d]
}
