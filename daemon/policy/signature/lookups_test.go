package signature

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/daemon/origin"
)

func unknownYet() (string, bool) { return "", false }

// What was found out is good for as long as it says, and an error for no time.
func TestLookupsAreGoodForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l lookups[int, string]
		asked := 0
		var fail error
		ask := func() (string, error) {
			return l.do(t.Context(), 1, unknownYet, func(context.Context) (string, time.Duration, error) {
				asked++
				return "x", unsignedFor, fail
			})
		}
		for range 3 {
			if v, err := ask(); v != "x" || err != nil {
				t.Errorf("%q, %v", v, err)
			}
		}
		time.Sleep(unsignedFor - 1)
		_, _ = ask()
		if asked != 1 {
			t.Errorf("asked %d times before the end", asked)
		}
		time.Sleep(time.Nanosecond)
		fail = errors.New("no")
		for range 2 {
			if v, err := ask(); v != "x" || !errors.Is(err, fail) {
				t.Errorf("%q, %v", v, err)
			}
		}
		if asked != 3 {
			t.Errorf("asked %d times after it", asked)
		}
	})
}

// A lookup has a minute; its end is the registry's failure, not the caller's.
func TestLookupsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l lookups[int, string]
		began := time.Now()
		_, err := l.do(t.Context(), 1, unknownYet, func(ctx context.Context) (string, time.Duration, error) {
			<-ctx.Done()
			return "", 0, ctx.Err()
		})
		if !errors.Is(err, origin.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || time.Since(began) != lookupTime {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// A denial is of one caller's credentials: the next one asks for itself. Other
// errors are everybody's.
func TestLookupsShareWhatIsShared(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want int
	}{{origin.ErrDenied, 3}, {context.Canceled, 3}, {origin.ErrUnavailable, 1}, {nil, 1}} {
		synctest.Test(t, func(t *testing.T) {
			var l lookups[int, string]
			asked := 0
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					_, err := l.do(t.Context(), 1, unknownYet, func(context.Context) (string, time.Duration, error) {
						asked++
						time.Sleep(time.Second)
						return "", time.Second, test.err
					})
					if !errors.Is(err, test.err) {
						t.Errorf("error = %v, want %v", err, test.err)
					}
				})
			}
			wg.Wait()
			if asked != test.want {
				t.Errorf("%v: asked %d times, want %d", test.err, asked, test.want)
			}
		})
	}
}

// A panic ends the lookup for all who wait.
func TestLookupsPanic(t *testing.T) {
	t.Parallel()
	var l lookups[int, string]
	func() {
		defer func() { _ = recover() }()
		_, _ = l.do(t.Context(), 1, unknownYet, func(context.Context) (string, time.Duration, error) { panic("x") })
	}()
	v, err := l.do(t.Context(), 1, unknownYet, func(context.Context) (string, time.Duration, error) { return "x", 0, nil })
	if v != "x" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

func TestLookupsAreBounded(t *testing.T) {
	t.Parallel()
	var l lookups[int, string]
	for i := range rememberedLookups + 100 {
		_, _ = l.do(t.Context(), i, unknownYet, func(context.Context) (string, time.Duration, error) { return "", time.Hour, nil })
	}
	if n := len(l.entries); n != rememberedLookups {
		t.Errorf("%d entries, want %d", n, rememberedLookups)
	}
}

// A panic in what verifies a signature refuses it.
func TestPanicRefuses(t *testing.T) {
	t.Parallel()
	broken := &key{} // neither of one kind nor of the other
	if _, err := broken.signed(t.Context(), item{kind: kindEnvelope}, subject{}, nil); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("error = %v", err)
	}
	if _, err := (&gate{}).read(item{kind: kindEnvelope}, fuzzDigest); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("error = %v", err)
	}
}
