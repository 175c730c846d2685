package jobs

import (
	"flag"
	"testing"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/registry"
)

func TestMain(m *testing.M) {
	// More tests run at once than there are CPUs: they mostly wait.
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(registry.LeakedGoroutine),
		// A registry has no way to end its notifications either.
		goleak.IgnoreAnyFunction("github.com/distribution/distribution/v3/notifications.(*eventQueue).run"))
}
