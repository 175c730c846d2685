package daemon_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
)

// TestChecks: two real nodes and a registry. Each check holds while all is well,
// and the right one fails when its link is cut.
func TestChecks(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64 // how much the registry's clock is
	var asked atomic.Int64
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Date", time.Now().Add(time.Duration(ahead.Load())).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(origin.Close)
	f, err := fleet.Start(t.Context(), fleet.Options{
		Nodes: 2, Origin: origin.URL, Dir: t.TempDir(),
		Configure: func(_ int, c *daemon.Config) { c.Admin.Listen = "127.0.0.1:0" },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(); err != nil {
			t.Error(err)
		}
	})
	n := f.Nodes[0]
	look := func(want map[string]admin.CheckState) {
		t.Helper()
		checks := n.Checks(t.Context())
		for _, k := range checks {
			state, named := want[k.Name]
			if prefix, _, _ := strings.Cut(k.Name, " "); !named {
				state, named = want[prefix]
			}
			if !named {
				state = admin.CheckOK
			}
			if k.State != state {
				t.Errorf("%+v, want %s", k, state)
			}
		}
		for name := range want {
			if !slices.ContainsFunc(checks, func(k admin.Check) bool { p, _, _ := strings.Cut(k.Name, " "); return k.Name == name || p == name }) {
				t.Errorf("there is no check %s: %+v", name, checks)
			}
		}
	}
	// The test bed's disk may be nearly full, and its secret readable by all.
	bed := func(more map[string]admin.CheckState) map[string]admin.CheckState {
		want := map[string]admin.CheckState{}
		for _, k := range n.Checks(t.Context()) {
			if k.Name == "disk" || k.Name == "inodes" || k.Name == "secret" {
				want[k.Name] = k.State
			}
		}
		for k, v := range more {
			want[k] = v
		}
		return want
	}
	look(bed(map[string]admin.CheckState{"ready": admin.CheckOK, "fleet": admin.CheckOK, "scheduler": admin.CheckOK, "peers": admin.CheckOK, "origin": admin.CheckOK, "clock": admin.CheckOK}))
	ahead.Store(int64(20 * time.Second))
	look(bed(map[string]admin.CheckState{"clock": admin.CheckWarn}))
	ahead.Store(-int64(time.Hour))
	look(bed(map[string]admin.CheckState{"clock": admin.CheckFail}))

	// Through the door, several at once are one look.
	before := asked.Load()
	client := admin.NewClient(n.AdminAddr())
	if checks, err := client.Checks(t.Context()); err != nil || len(checks) < 7 {
		t.Errorf("%+v, %v", checks, err)
	}
	once := asked.Load() - before
	for range 5 {
		if _, err := client.Checks(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := asked.Load() - before; got > 2*once {
		t.Errorf("the registry was asked %d times for 6 looks, and %d times for one", got, once)
	}

	origin.Close()
	look(bed(map[string]admin.CheckState{"origin": admin.CheckFail, "clock": admin.CheckSkip}))
	if err := client.SetOffline(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	look(bed(map[string]admin.CheckState{"origins": admin.CheckSkip, "clock": admin.CheckSkip}))
}
