package rollout

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestArrivalTimes(t *testing.T) {
	t.Parallel()
	if got := (Arrival{}).times(3, 1); !slices.Equal(got, make([]time.Duration, 3)) {
		t.Errorf("together: %v", got)
	}
	a := Arrival{Rate: 5}
	got := a.times(10_000, 1)
	if got[0] != 0 || !slices.IsSorted(got) {
		t.Errorf("from %s on, in order: %t", got[0], slices.IsSorted(got))
	}
	if rate := 10_000 / got[9999].Seconds(); math.Abs(rate-5) > 0.2 {
		t.Errorf("%.2f a second, want 5", rate)
	}
	if !slices.Equal(got[:10], a.times(10, 1)) || slices.Equal(got[:10], a.times(10, 2)) {
		t.Error("the seed decides, and nothing else")
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	o := usual()
	o.Nodes, o.Zones, o.Slow = 10, 4, Slow{Share: 0.2, Rate: mbit}
	zones := map[int]int{}
	for i, p := range o.places() {
		zones[p.zone]++
		if p.slow != (i >= 8) || p.slow != (p.rate == mbit) || p.name != nodeName(i) {
			t.Errorf("%d: %+v", i, p)
		}
	}
	if zones[0] != 3 || zones[1] != 3 || zones[2] != 2 || zones[3] != 2 {
		t.Errorf("nodes in each zone: %v", zones)
	}
	if got := o.zoneName(0); got != "zone-1" {
		t.Errorf("the first zone is %q", got)
	}
	o.Zones = 0
	if got := o.zoneName(0); got != "" {
		t.Errorf("without zones a node is in %q", got)
	}
}

func TestSlowNodes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		slow Slow
		n    int
		want int
	}{
		{Slow{}, 8, 0}, {Slow{Count: 3}, 8, 3}, {Slow{Share: 0.1}, 8, 1}, {Slow{Share: 0.1}, 16, 2}, {Slow{Share: 0.1}, 3, 1},
	} {
		if got := tc.slow.Nodes(tc.n); got != tc.want {
			t.Errorf("%+v of %d: %d, want %d", tc.slow, tc.n, got, tc.want)
		}
	}
}

func TestBound(t *testing.T) {
	t.Parallel()
	o := usual()
	if got := o.bound(); math.Abs(got-5.369) > 0.001 {
		t.Errorf("%.3f s", got)
	}
	o.Slow = Slow{Count: 1, Rate: 10 * mbit}
	if got := o.bound(); math.Abs(got-53.69) > 0.01 {
		t.Errorf("with a slow node: %.2f s", got)
	}
}

func TestFinal(t *testing.T) {
	t.Parallel()
	kill := Fault{"kill", "node-1", 0}
	for _, tc := range []struct {
		later []Fault
		want  bool
	}{
		{nil, true},
		{[]Fault{{"restart", "node-2", time.Second}, {"cont", "node-1", time.Second}}, true},
		{[]Fault{{"cut", "node-1", 0}, {"restart", "node-1", time.Second}}, false},
	} {
		if got := final(kill, tc.later); got != tc.want {
			t.Errorf("%v: %t", tc.later, got)
		}
	}
}
