package rollout

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/report"
)

// TestInProcess runs whole rollouts, small and on fast links.
func TestInProcess(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Options){
		"shoal":        func(*Options) {},
		"zones":        func(o *Options) { o.Zones, o.Layers = 2, 4 },
		"no scheduler": func(o *Options) { o.Mode, o.Security = report.ModeNoScheduler, "none" },
		"direct":       func(o *Options) { o.Mode, o.Arrival = report.ModeDirect, Arrival{Rate: 100} },
		"warm":         func(o *Options) { o.Warm = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := usual()
			o.Nodes, o.Size, o.NodeRate, o.OriginRate = 2, 3<<20, 1000*mbit, 1000*mbit
			o.InProcess, o.Force, o.Dir, o.Seed = true, true, t.TempDir(), 5
			change(&o)
			var last Progress
			o.Progress = func(p Progress) { last = p }
			r, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			checkResult(t, r, o)
			if last.Total != 6<<20 || last.Nodes != 2 {
				t.Errorf("progress of %+v", last)
			}
			if want := o.Dir + ")"; !strings.HasSuffix(r.Params.Files, want) {
				t.Errorf("the files were %s, want them in %s", r.Params.Files, o.Dir)
			}
			empty(t, o.Dir)
			unmapped(t, o.Dir)
		})
	}
}

// TestDefaultPlace: a run that is not told where its files go says where they
// were, and leaves none.
func TestDefaultPlace(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	o := usual()
	o.Nodes, o.Size, o.Mode, o.NodeRate, o.OriginRate = 1, 1<<20, report.ModeDirect, 1000*mbit, 1000*mbit
	o.InProcess, o.Force = true, true
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Params.Files; got != "in memory ("+sharedMemory+")" && got != (storage{path: temporary}).String() {
		t.Errorf("the files were %s", got)
	}
	t.Log(r.Params.Files)
	empty(t, temporary)
	unmapped(t, sharedMemory)
}

// checkResult checks what is true of every rollout that has gone well.
func checkResult(t *testing.T, r *report.Result, o Options) {
	t.Helper()
	copies := 1.0
	switch {
	case o.Mode == report.ModeDirect:
		copies = float64(o.Nodes)
	case o.Warm:
		copies = 0
	}
	if r.Copies() != copies {
		t.Errorf("%.3f copies left the origin, want %g", r.Copies(), copies)
	}
	if r.Bound <= 0 || r.ImageBytes != o.Size || r.Params.Seed == 0 || (r.Scheduler != nil) != (o.Mode == report.ModeShoal) {
		t.Errorf("%+v", r)
	}
	for _, n := range r.Nodes {
		if n.Done <= n.Arrived || n.Error != "" || len(n.Layers) != o.Layers || n.Silence <= 0 || n.Bound <= 0 {
			t.Errorf("%+v", n)
		}
		if got := n.Progress[len(n.Progress)-1].Bytes; got != o.Size {
			t.Errorf("%s: the last point has %d bytes", n.Name, got)
		}
		b := n.Bytes
		got := b.Origin + b.Seed + b.Zone + b.Far
		if o.Warm {
			if got != 0 {
				t.Errorf("%s has the image, and got %d bytes: %+v", n.Name, got, b)
			}
			got = b.Disk
		}
		if off := math.Abs(float64(got-b.Duplicate)/float64(o.Size) - 1); off > 0.01 {
			t.Errorf("%s tells of %d bytes, want %d: %+v", n.Name, got, o.Size, b)
		}
	}
}

// empty checks that nothing is left in a folder.
func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v, %v", dir, left, err)
	}
}

// TestInterrupt ends a rollout in the middle: what remains is the cause.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	o := usual()
	o.Nodes, o.Size, o.NodeRate, o.OriginRate = 2, 8<<20, 10*mbit, 10*mbit
	o.InProcess, o.Force, o.Dir = true, true, t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	o.Progress = func(p Progress) {
		if p.Bytes > 0 {
			cancel(why)
		}
	}
	start := time.Now()
	r, err := Run(ctx, o)
	if r != nil || !errors.Is(err, why) {
		t.Errorf("%+v, %v", r, err)
	}
	t.Logf("it took %s", time.Since(start))
	empty(t, o.Dir)
}
