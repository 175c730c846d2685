package peer

import (
	"context"
	"crypto/rand"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-project/shoal/proto"
)

func randomID(t *testing.T) libp2ppeer.ID {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := libp2ppeer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAdmit(t *testing.T) {
	a, b, c := randomID(t), randomID(t), randomID(t)
	as := func(ids ...libp2ppeer.ID) (ms []proto.Member) {
		for _, id := range ids {
			ms = append(ms, proto.Member{ID: id.String(), Addr: "10.0.0.1:7051"})
		}
		return ms
	}
	synctest.Test(t, func(t *testing.T) {
		m := newMembers()
		m.set(as(a), false)
		start := time.Now()
		if !m.admit(t.Context(), a) || time.Since(start) != 0 {
			t.Error("a member has to wait")
		}
		if m.admit(t.Context(), b) || time.Since(start) != awaitMember {
			t.Errorf("a stranger is let in, or refused after %v", time.Since(start))
		}
		go func() {
			time.Sleep(awaitMember / 4)
			m.set(as(a, c), false)
			time.Sleep(awaitMember / 4)
			m.set(as(a, b, c), false)
		}()
		start = time.Now()
		if !m.admit(t.Context(), b) || time.Since(start) != awaitMember/2 {
			t.Errorf("a late member is refused, or let in after %v", time.Since(start))
		}
		m.set(as(a), false)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start = time.Now()
		if m.admit(ctx, b) || time.Since(start) != 0 {
			t.Error("waits after its context has ended")
		}
	})
}

// No more than maxAwaited wait at once, and members are not among those.
func TestAdmitFew(t *testing.T) {
	a, b := randomID(t), randomID(t)
	synctest.Test(t, func(t *testing.T) {
		m := newMembers()
		m.set([]proto.Member{{ID: a.String(), Addr: "10.0.0.1:7051"}}, false)
		var waiting sync.WaitGroup
		for range maxAwaited {
			waiting.Go(func() { m.admit(t.Context(), b) })
		}
		synctest.Wait()
		start := time.Now()
		if m.admit(t.Context(), b) || time.Since(start) != 0 {
			t.Error("one too many waits")
		}
		if !m.admit(t.Context(), a) || time.Since(start) != 0 {
			t.Error("a member is kept out by strangers")
		}
		waiting.Wait()
		if m.waiting != 0 {
			t.Errorf("%d wait still", m.waiting)
		}
	})
}

func TestSetMembers(t *testing.T) {
	id := randomID(t)
	m := newMembers()
	bad := m.set([]proto.Member{
		{ID: id.String(), Addr: "10.0.0.1:7051"},
		{ID: randomID(t).String(), Addr: "node-1.example:7051"},
		{ID: "nonsense", Addr: "10.0.0.3:7051"},
	}, true)
	if len(bad) != 2 || bad[0].Addr != "node-1.example:7051" || bad[1].ID != "nonsense" {
		t.Errorf("not let in: %v", bad)
	}
	for ip, want := range map[string]bool{
		"10.0.0.1": true, "::ffff:10.0.0.1": true, "10.0.0.2": false, "10.0.0.3": false,
	} {
		if m.hasIP(netip.MustParseAddr(ip)) != want {
			t.Errorf("hasIP(%s) is not %v", ip, want)
		}
	}
}
