package fleet_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/registry"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(registry.LeakedGoroutine),
		// A probe of memberlist's ends by itself, up to half a second after Shutdown.
		goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// waitFor waits until a node that is observed from outside has got somewhere.
func waitFor(t *testing.T, what string, reached func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !reached() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
