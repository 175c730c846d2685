package signature

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/registry"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(registry.LeakedGoroutine))
}
