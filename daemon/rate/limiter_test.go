package rate

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A grant is what Wait returned, and when.
type grant struct {
	at time.Time
	n  int64
}

// ledger notes grants.
type ledger struct {
	mu     sync.Mutex
	grants []grant
}

// move moves bytes through l, want at a time, until ctx ends, and returns how
// many.
func (g *ledger) move(ctx context.Context, l *Limiter, want int64) (total int64) {
	for {
		n, err := l.Wait(ctx, want)
		if err != nil {
			return total
		}
		g.mu.Lock()
		g.grants = append(g.grants, grant{time.Now(), n})
		g.mu.Unlock()
		total += n
	}
}

// check checks that no window of time had more than the rate and one quantum,
// to the nanosecond.
func (g *ledger) check(t *testing.T, r Rate, quantum int64) {
	t.Helper()
	// excess is the most by which a window that ends now is over the rate.
	excess, last := 0.0, time.Unix(0, 0)
	for _, x := range g.grants {
		excess = max(excess-float64(r)*x.at.Sub(last).Seconds(), 0) + float64(x.n)
		if last = x.at; excess > float64(quantum)+2*float64(r)/1e9 {
			t.Fatalf("at %s some time had %.0f bytes more than the rate, a quantum is %d", x.at, excess, quantum)
		}
	}
}

// Over any time at all no more passes than the rate and a quantum, and no less
// either if there is always somebody who wants it.
func TestRateHolds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rate    Rate
		quantum int64
		wants   []int64
	}{
		{1 * mbit, minQuantum, []int64{8 << 20}},
		{1 * mbit, minQuantum, []int64{100, 8 << 20, 70000}},
		{20 * mbit, 312500, []int64{8 << 20, 8 << 20}},
		{100 * mbit, Quantum, []int64{1 << 20, 64 << 10, 1 << 30, 1000, 7}},
		{10000 * mbit, Quantum, []int64{8 << 20, 8 << 20, 8 << 20}},
	} {
		t.Run(tt.rate.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := New(tt.rate)
				if got := l.quantum(); got != tt.quantum {
					t.Errorf("the quantum is %d, want %d", got, tt.quantum)
				}
				time.Sleep(time.Hour) // idleness is not saved up
				span := time.Duration(200 * float64(tt.quantum) / float64(tt.rate) * float64(time.Second))
				ctx, cancel := context.WithTimeout(t.Context(), span)
				defer cancel()
				var g ledger
				var transfers sync.WaitGroup
				for _, want := range tt.wants {
					transfers.Go(func() { g.move(ctx, l, want) })
				}
				transfers.Wait()
				g.check(t, tt.rate, tt.quantum)
				var sum int64
				for _, x := range g.grants {
					sum += x.n
				}
				if least := 199 * tt.quantum; sum < least {
					t.Errorf("%d bytes in all, want at least %d", sum, least)
				}
			})
		})
	}
}

// Transfers that come and go, and pause, get no more either.
func TestRateHoldsWithPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(100 * mbit)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var g ledger
		var transfers sync.WaitGroup
		for i := range 7 {
			transfers.Go(func() {
				for ctx.Err() == nil {
					some, stop := context.WithTimeout(ctx, time.Duration(50+i*37)*time.Millisecond)
					g.move(some, l, int64(1+i)*300_000)
					stop()
					time.Sleep(time.Duration(i*i*31) * time.Millisecond)
				}
			})
		}
		transfers.Wait()
		g.check(t, 100*mbit, Quantum)
	})
}

// Transfers that want as much as they can get all get the same, whoever came
// first.
func TestFair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(100 * mbit)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var g ledger
		var transfers sync.WaitGroup
		total := make([]int64, 5)
		for i := range total {
			transfers.Go(func() { total[i] = g.move(ctx, l, int64(i+1)<<20) })
		}
		transfers.Wait()
		const share = 125e6 / 5
		for _, n := range total {
			if n < share-2*Quantum || n > share+2*Quantum {
				t.Errorf("got %d, want %.0f each", total, share)
				break
			}
		}
	})
}

// A small transfer waits for one turn of the others at most.
func TestSmallAmongLarge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(80 * mbit) // ten quanta a second, roughly
		ctx, cancel := context.WithCancel(t.Context())
		var g ledger
		var transfers sync.WaitGroup
		for range 3 {
			transfers.Go(func() { g.move(ctx, l, 1<<30) })
		}
		time.Sleep(10 * time.Second)
		start := time.Now()
		if n, err := l.Wait(t.Context(), 1000); n != 1000 || err != nil {
			t.Errorf("Wait = %d, %v", n, err)
		}
		if took := time.Since(start); took > 4*Quantum*time.Second/(10e6) {
			t.Errorf("waited for %s", took)
		}
		cancel()
		transfers.Wait()
	})
}

// A large transfer is not passed over for small ones, for which there would be
// enough sooner.
func TestLargeAmongSmall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(1 * mbit)
		ctx, cancel := context.WithCancel(t.Context())
		var transfers sync.WaitGroup
		for range 3 {
			transfers.Go(func() {
				for ctx.Err() == nil {
					_, _ = l.Wait(ctx, 100)
					time.Sleep(time.Millisecond)
				}
			})
		}
		time.Sleep(10 * time.Second)
		start := time.Now()
		few, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		if n, err := l.Wait(few, 1<<20); n != minQuantum || err != nil {
			t.Errorf("Wait = %d, %v", n, err)
		}
		if took := time.Since(start); took > 140*time.Millisecond {
			t.Errorf("waited for %s", took)
		}
		cancel()
		transfers.Wait()
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(8 * mbit) // a megabyte a second, 125,000 at a time
		if n, err := l.Wait(t.Context(), 125_000); n != 125_000 || err != nil {
			t.Fatalf("Wait = %d, %v", n, err)
		}
		// Three wait for 125 ms each; the first and the second give up.
		start := time.Now()
		var waiting sync.WaitGroup
		for i, patience := range []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, time.Hour} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			waiting.Go(func() {
				n, err := l.Wait(ctx, 1<<20)
				took := time.Since(start).Round(time.Millisecond)
				switch {
				case i < 2 && (n != 0 || !errors.Is(err, context.DeadlineExceeded) || took != patience):
					t.Errorf("%d: Wait = %d, %v after %s", i, n, err, took)
				case i == 2 && (n != 125_000 || err != nil || took != 125*time.Millisecond):
					t.Errorf("the last: Wait = %d, %v after %s", n, err, took)
				}
			})
			synctest.Wait()
		}
		waiting.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		time.Sleep(time.Hour)
		if n, err := l.Wait(ctx, 1); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: Wait = %d, %v", n, err)
		}
	})
}

// Who is next does not wait for what the one before it wanted and gave up.
func TestCancelOfALargerOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(8 * mbit)
		if _, err := l.Wait(t.Context(), 125_000); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if n, err := l.Wait(ctx, 1<<20); err == nil {
				t.Errorf("Wait = %d", n)
			}
		})
		synctest.Wait()
		if n, err := l.Wait(t.Context(), 1000); n != 1000 || err != nil {
			t.Errorf("Wait = %d, %v", n, err)
		}
		if took := time.Since(start); took != 50*time.Millisecond {
			t.Errorf("waited for %s", took)
		}
		waiting.Wait()
	})
}

// What the rate allowed while a timer was late is not lost, up to lateness.
func TestLateTimer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(8000 * mbit) // a megabyte in a millisecond
		ctx := t.Context()
		if _, err := l.Wait(ctx, Quantum); err != nil {
			t.Fatal(err)
		}
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if _, err := l.Wait(ctx, 1_000_000); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		l.timer.Stop()
		time.Sleep(4 * time.Millisecond)
		l.turn()
		waiting.Wait()
		start := time.Now()
		for range 3 {
			if n, err := l.Wait(ctx, 1_000_000); n != 1_000_000 || err != nil {
				t.Errorf("Wait = %d, %v", n, err)
			}
		}
		if took := time.Since(start); took > time.Microsecond {
			t.Errorf("three megabytes more took %s", took)
		}
	})
}

// A change holds at once, for those that wait too.
func TestSet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		to    Rate
		after time.Duration // the change, since the Wait
		want  int64
		took  time.Duration
	}{
		// At 1 Mbit/s 16 KiB take 131.072 ms.
		{"none", 1 * mbit, 50 * time.Millisecond, minQuantum, 131072 * time.Microsecond},
		{"unlimited", Unlimited, 50 * time.Millisecond, 8 << 20, 50 * time.Millisecond},
		// In 50 ms 6,250 of the 250,000 bytes have gathered, at 20 Mbit/s the others take 97.5 ms.
		{"up", 16 * mbit, 50 * time.Millisecond, 250_000, 50*time.Millisecond + 121875*time.Microsecond},
		{"down", mbit / 2, 50 * time.Millisecond, minQuantum, 50*time.Millisecond + 162144*time.Microsecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := New(1 * mbit)
				if _, err := l.Wait(t.Context(), minQuantum); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				time.AfterFunc(tt.after, func() { l.Set(tt.to) })
				n, err := l.Wait(t.Context(), 8<<20)
				if took := time.Since(start).Round(time.Microsecond); n != tt.want || err != nil || took != tt.took {
					t.Errorf("Wait = %d, %v after %s, want %d after %s", n, err, took, tt.want, tt.took)
				}
				if l.Rate() != tt.to {
					t.Errorf("the rate is %s", l.Rate())
				}
			})
		})
	}
}

// All who wait go on when the limit is taken away, and wait again when it is
// back.
func TestSetWithMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(1 * mbit)
		var waiting sync.WaitGroup
		start := time.Now()
		for range 10 {
			waiting.Go(func() {
				for range 100 {
					if _, err := l.Wait(t.Context(), 1<<20); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(time.Second)
		l.Set(Unlimited)
		waiting.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s", took)
		}
		l.Set(1 * mbit)
		start = time.Now()
		for range 2 {
			if n, err := l.Wait(t.Context(), 1<<20); n != minQuantum || err != nil {
				t.Errorf("Wait = %d, %v", n, err)
			}
		}
		if took := time.Since(start); took < 100*time.Millisecond {
			t.Errorf("the new limit let two quanta pass in %s", took)
		}
	})
}

// What gathered at a higher rate is not a burst at a lower one.
func TestSetLower(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(1000 * mbit)
		time.Sleep(time.Second)
		l.Set(1 * mbit)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var g ledger
		g.move(ctx, l, 1<<20)
		g.check(t, 1*mbit, minQuantum)
	})
}

func TestWaited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(8 * mbit)
		for range 9 { // the first is free
			if _, err := l.Wait(t.Context(), 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		if got := l.Waited().Round(time.Millisecond); got != time.Second {
			t.Errorf("waited %s, want 1s", got)
		}
	})
}

func TestUnlimitedCostsNothing(t *testing.T) { // alone, for it counts allocations
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var none *Limiter
	for name, l := range map[string]*Limiter{"nil": none, "unlimited": New(Unlimited)} {
		if n, err := l.Wait(ended, 1<<40); n != 1<<40 || err != nil {
			t.Errorf("%s: Wait = %d, %v", name, n, err)
		}
		if l.Rate() != Unlimited || l.Waited() != 0 {
			t.Errorf("%s: %s, %s", name, l.Rate(), l.Waited())
		}
		if allocs := testing.AllocsPerRun(100, func() { _, _ = l.Wait(ended, 1<<20) }); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

// BenchmarkWait is the cost of asking, without a limit, with one that has
// credit, and with one that each quantum waits for, from two goroutines.
func BenchmarkWait(b *testing.B) {
	ctx := b.Context()
	ask := func(b *testing.B, l *Limiter) {
		for b.Loop() {
			if _, err := l.Wait(ctx, Quantum); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("unlimited", func(b *testing.B) { b.ReportAllocs(); ask(b, New(Unlimited)) })
	b.Run("credit", func(b *testing.B) { b.ReportAllocs(); ask(b, New(maxRate)) })
	b.Run("waiting", func(b *testing.B) { // a quantum takes 84 µs
		b.ReportAllocs()
		l := New(100_000 * mbit)
		stop, cancel := context.WithCancel(ctx)
		var other sync.WaitGroup
		other.Go(func() {
			var err error
			for err == nil {
				_, err = l.Wait(stop, Quantum)
			}
		})
		ask(b, l)
		cancel()
		other.Wait()
	})
}
