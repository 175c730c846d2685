package rate

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What comes from an origin counts for both limits, what comes from a peer for
// download alone.
func TestReceive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		download, origin Rate
		fromOrigin       bool
		want             Rate
	}{
		{"peer", 8 * mbit, 1 * mbit, false, 8 * mbit},
		{"origin below download", 8 * mbit, 1 * mbit, true, 1 * mbit},
		{"download below origin", 1 * mbit, 8 * mbit, true, 1 * mbit},
		{"origin only", Unlimited, 8 * mbit, true, 8 * mbit},
		{"download only", 8 * mbit, Unlimited, true, 8 * mbit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := NewLimits(Plan{Rates: Rates{Download: tt.download, Origin: tt.origin}}, nil)
				start := time.Now()
				for left := int64(10e6); left > 0; {
					n, err := l.Receive(t.Context(), tt.fromOrigin, left)
					if err != nil || n < 1 || n > left {
						t.Fatalf("Receive = %d, %v", n, err)
					}
					left -= n
				}
				want := 10e6 / float64(tt.want)
				if took := time.Since(start).Seconds(); took > want || took < want*0.95 {
					t.Errorf("took %.2f s, want %.2f", took, want)
				}
			})
		})
	}
	t.Run("together", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := NewLimits(Plan{Rates: Rates{Download: 8 * mbit}}, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var transfers sync.WaitGroup
			var sum [2]int64
			for i := range sum {
				transfers.Go(func() {
					for {
						n, err := l.Receive(ctx, i == 0, 1<<20)
						if err != nil {
							return
						}
						sum[i] += n
					}
				})
			}
			transfers.Wait()
			if all := sum[0] + sum[1]; all > 10_200_000 || sum[0] < 4_500_000 || sum[1] < 4_500_000 {
				t.Errorf("%d bytes from the origin and %d from peers in 10 s at 1 MB/s", sum[0], sum[1])
			}
		})
	})
}

// The limits change at the moment of the schedule, in the midst of transfers.
func TestSchedule(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		in   time.Duration // until the window opens
	}{
		{"soon", time.Minute}, {"in ten hours", 10 * time.Hour}, {"in a moment", time.Nanosecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				// Time begins at some full minute here, whatever the zone.
				opens := time.Now().Add(10 * time.Hour)
				closes := opens.Add(2 * time.Minute)
				time.Sleep(10*time.Hour - tt.in)
				p := plan(t, opens.Format("15:04")+"-"+closes.Format("15:04")+" upload 8mbit")
				var log bytes.Buffer
				l := NewLimits(p, slog.New(slog.NewTextHandler(&log, nil)))
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() {
					if err := l.Run(ctx); err != nil {
						t.Error(err)
					}
				})
				look := func(when time.Time, want Rate) {
					t.Helper()
					time.Sleep(time.Until(when))
					synctest.Wait()
					if got := l.Upload.Rate(); got != want {
						t.Errorf("at %s uploads have %s, want %s", when, got, want)
					}
				}
				look(opens.Add(-1), 100*mbit)
				look(opens, 8*mbit)

				// At the end of the window the one that waits is granted what
				// 100 Mbit/s have for it, and is not held to the old rate.
				look(closes.Add(-time.Millisecond), 8*mbit)
				for range 2 {
					if _, err := l.Upload.Wait(t.Context(), 1<<20); err != nil {
						t.Error(err)
					}
				}
				look(closes.Add(200*time.Millisecond), 100*mbit)
				cancel()
				running.Wait()
				if got := strings.Count(log.String(), "limits change"); got != 2 {
					t.Errorf("%d lines in the log: %s", got, log.String())
				}
				if got := l.Download.Rate(); got != 200*mbit {
					t.Errorf("downloads have %s", got)
				}
			})
		})
	}
}

// A window that is open when the node starts holds from the first byte on.
func TestScheduleAtStart(t *testing.T) {
	t.Parallel()
	l := NewLimits(plan(t, "00:00-24:00 8mbit"), nil)
	for _, limiter := range []*Limiter{l.Upload, l.Download, l.Origin} {
		if limiter.Rate() != 8*mbit {
			t.Errorf("got %s", limiter.Rate())
		}
	}
}
