package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

func same(rate float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = rate
	}
	return out
}

func TestBound(t *testing.T) {
	t.Parallel()
	const mbit = 1e6 / 8
	f := int64(64 << 20)
	for _, tt := range []struct {
		name     string
		size     int64
		us       float64
		up, down []float64
		want     float64
	}{
		{"all links equal", f, 100 * mbit, same(100*mbit, 8), same(100*mbit, 8), 5.368709},
		{"the way in is the limit", f, 50 * mbit, same(100*mbit, 8), same(100*mbit, 8), 10.737418},
		{"the slowest downlink is", f, 100 * mbit, same(100*mbit, 2), []float64{100 * mbit, 10 * mbit}, 53.687091},
		{"all uplinks together are", 1000, 100, same(10, 10), same(100, 10), 50},
		{"nobody passes on", 1000, 100, same(0, 10), same(100, 10), 100},
		{"no limits", 1000, math.Inf(1), same(math.Inf(1), 3), same(math.Inf(1), 3), 0},
		{"no way in", 1000, 0, same(1, 1), same(1, 1), math.Inf(1)},
		{"no nodes", 1000, 1, nil, nil, 0},
		{"nothing to send", 0, 1, same(1, 1), same(1, 1), 0},
	} {
		if got := Bound(tt.size, tt.us, tt.up, tt.down); math.Abs(got-tt.want) > 1e-5 && got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// example returns a result in which every figure of the table is another.
func example() *Result {
	r := &Result{
		Kind: "rollout", Command: "shoal bench rollout",
		Params: Params{
			Nodes: 4, Size: 64 << 20, Layers: 2, NodeRate: 12.5e6, OriginRate: 12.5e6, SeedRate: 12.5e6,
			SlowNodes: 1, SlowRate: 1.25e6, Zones: 2, CrossZoneRate: 25e6, Delay: 0.01,
			Arrival: "together", Mode: ModeShoal, Security: "tls", Congestion: "cubic",
			Files: "in memory (/dev/shm)", Seed: 7,
		},
		ImageBytes: 64 << 20, OriginBytes: 65 << 20,
		Scheduler: &Node{Name: "scheduler", Zone: "zone-1", CPU: 0.5, RSS: 40 << 20},
		Faults:    []string{"kill scheduler@2s"},
		Grants:    1000, GrantSeconds: 0.002, SchedulerMemory: 3 << 20,
	}
	for i := range 4 {
		done := 6 + float64(i)
		n := Node{
			Name: fmt.Sprintf("node-%d", i+1), Zone: fmt.Sprintf("zone-%d", i%2+1), Done: done, Silence: 0.5 + float64(i)/10,
			Bytes:  Bytes{Seed: 16 << 20, Zone: 30 << 20, Far: 18 << 20, Duplicate: 1 << 19},
			Layers: []float64{done / 2, done}, CPU: 1, RSS: int64(30+i) << 20,
		}
		if i == 3 {
			n.Slow, n.Done, n.Layers = true, 60, []float64{31, 60}
		}
		for k := range 11 {
			n.Progress = append(n.Progress, Point{At: n.Done * float64(k) / 10, Bytes: int64(k) * (64 << 20) / 10})
		}
		r.Nodes = append(r.Nodes, n)
	}
	r.SetBounds()
	return r
}

// late returns a result with arrivals one after the other.
func late() *Result {
	r := example()
	r.Params.Arrival, r.Params.SlowNodes, r.Params.Zones, r.Params.CrossZoneRate = "poisson:5/s", 0, 0, 0
	r.Faults, r.Scheduler, r.Params.Mode, r.Grants, r.SchedulerMemory = nil, nil, ModeNoScheduler, 0, 0
	for i := range r.Nodes {
		n := &r.Nodes[i]
		n.Slow, n.Zone, n.CPU, n.RSS = false, "", 0, 0
		n.Arrived, n.Done = float64(i), float64(i)+6+float64(i)/4
	}
	r.SetBounds()
	return r
}

// failed returns a result in which a node did not make it.
func failed() *Result {
	r := example()
	r.Nodes[1].Done, r.Nodes[1].Error = 0, "layer 2: digest <wrong> & gone"
	r.Nodes[1].Resumed = 3
	r.Kind, r.Nodes[1].Name = "a <kind>", `node "2" & <more>`
	return r
}

// crowd returns a result of more nodes than are drawn.
func crowd() *Result {
	r := &Result{Kind: "simulate", Params: Params{Nodes: 1000, Size: 1 << 30, NodeRate: 1.25e9, OriginRate: 1.25e9, Mode: ModeShoal, Arrival: "together"}, ImageBytes: 1 << 30, OriginBytes: 1 << 30}
	for i := range 1000 {
		r.Nodes = append(r.Nodes, Node{Name: fmt.Sprint(i), Done: 1 + float64(i*7%1000)/5000, Bytes: Bytes{Zone: 1 << 30}})
	}
	r.SetBounds()
	return r
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*Result{"together": example(), "poisson": late(), "failed": failed(), "crowd": crowd(), "empty": {}} {
		var table, plot bytes.Buffer
		if err := r.Table(&table); err != nil {
			t.Fatal(err)
		}
		if err := r.Plot(&plot); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".txt", table.Bytes())
		if name != "crowd" {
			golden(t, name+".svg", plot.Bytes())
		}
		wellFormed(t, name, plot.Bytes())
		if k := bytes.Count(plot.Bytes(), []byte(`<polyline class="n`)); k != min(len(r.Nodes), maxCurves) {
			t.Errorf("%s: %d curves for %d nodes", name, k, len(r.Nodes))
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what it was (go test -update writes it anew):\n%s", name, got)
	}
}

func wellFormed(t *testing.T, name string, svg []byte) {
	t.Helper()
	if bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) {
		t.Errorf("%s: a coordinate is not a number", name)
	}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		switch _, err := d.Token(); {
		case err == nil:
			continue
		case !errors.Is(err, io.EOF):
			t.Errorf("%s: not well-formed: %v", name, err)
		}
		return
	}
}

func TestRatio(t *testing.T) {
	t.Parallel()
	if got := failed().Ratio(); got != 0 {
		t.Errorf("with a node that failed: %v, want 0", got)
	}
	if got := (&Result{}).Ratio(); got != 0 {
		t.Errorf("of nothing: %v, want 0", got)
	}
	r := crowd()
	if got, want := r.Ratio(), 1.1998/r.Bound; math.Abs(got-want) > 1e-9 {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBoundsOfNodes(t *testing.T) {
	t.Parallel()
	f := float64(64 << 20)
	r := example()
	if want := f / 1.25e6; r.Bound != want {
		t.Errorf("with a slow node the bound is %v, want %v", r.Bound, want)
	}
	if last, ratio := r.others(); last != 8 || math.Abs(ratio-8/(f/12.5e6)) > 1e-9 {
		t.Errorf("the last of the others: %v, %v of their bound", last, ratio)
	}
	if got, want := r.Nodes[3].Bound, f/1.25e6; got != want {
		t.Errorf("a slow node's own bound is %v, want %v", got, want)
	}
	r.Params.CrossZoneRate, r.Params.SlowNodes = 0.625e6, 0
	if r.SetBounds(); r.Bound != f/0.625e6 || r.Nodes[1].Bound != r.Bound || r.Nodes[0].Bound != f/12.5e6 {
		t.Errorf("over a thin link between zones the bound is %v, of a node there %v, here %v", r.Bound, r.Nodes[1].Bound, r.Nodes[0].Bound)
	}
	r = late()
	r.Params.NodeRate = 125e6 // ten times the origin's
	r.SetBounds()
	if got, want := r.Nodes[0].Bound, f/12.5e6; got != want {
		t.Errorf("the first to arrive waits for the origin: bound %v, want %v", got, want)
	}
	if got, want := r.Nodes[3].Bound, f/12.5e6-3; math.Abs(got-want) > 1e-9 {
		t.Errorf("who comes 3 s later waits for the rest of it: bound %v, want %v", got, want)
	}
	r.Params.SeedRate = 1.25e6
	if r.SetBounds(); r.Bound != f/12.5e6 {
		t.Errorf("without a scheduler the seed's rate counts: %v", r.Bound)
	}
	r.Params.Mode = ModeShoal
	if r.SetBounds(); r.Bound != f/1.25e6 {
		t.Errorf("with one it does not: %v", r.Bound)
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tt := range []struct {
		sorted []float64
		q      float64
		want   float64
	}{
		{hundred, 0.99, 99}, {hundred, 0.999, 100}, {hundred, 0.5, 50}, {hundred, 0, 1}, {hundred, 1, 100},
		{[]float64{3}, 0.5, 3}, {nil, 0.5, 0}, {[]float64{1, 2, 3, 4}, 0.5, 2},
	} {
		if got := quantile(tt.sorted, tt.q); got != tt.want {
			t.Errorf("%v of %d values: %v, want %v", tt.q, len(tt.sorted), got, tt.want)
		}
	}
}

// TestLittle: whatever the times, L = λW as long as nobody failed.
func TestLittle(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := &Result{}
		for range rapid.IntRange(1, 50).Draw(t, "nodes") {
			at := rapid.Float64Range(0, 100).Draw(t, "arrived")
			r.Nodes = append(r.Nodes, Node{Arrived: at, Done: at + rapid.Float64Range(0.1, 50).Draw(t, "took")})
		}
		if l := r.little(); l.offBy > 1e-6 {
			t.Fatalf("%+v", l)
		}
	})
	r := late()
	r.Nodes[0].Done = 0
	if l := r.little(); l.offBy < 0.01 {
		t.Errorf("a node that never left is not noticed: %+v", l)
	}
	if l := (&Result{}).little(); l != (little{}) {
		t.Errorf("of nothing: %+v", l)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	want := example()
	if err := want.WriteJSON(&buf); err != nil {
		t.Fatal(err)
	}
	got := &Result{}
	if err := json.Unmarshal(buf.Bytes(), got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("came back as %+v", got)
	}
	if strings.Count(buf.String(), "\n") != 1 {
		t.Error("it is not one line")
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ got, want string }{
		{formatSeconds(0), "0 s"}, {formatSeconds(0.00123), "1.23 ms"}, {formatSeconds(0.0994), "99.4 ms"},
		{formatSeconds(0.5), "0.50 s"}, {formatSeconds(99.994), "99.99 s"}, {formatSeconds(1234.5), "1234 s"},
		{formatSeconds(math.Inf(1)), "-"}, {formatRate(0), "unshaped"}, {formatRate(12.5e6), "100 Mbit/s"},
		{formatRate(1.25e9), "10 Gbit/s"}, {formatRate(1), "8 bit/s"}, {formatSize(0), "0 B"},
		{formatSize(1023), "1023 B"}, {formatSize(1536), "1.5 KiB"}, {formatSize(64 << 20), "64 MiB"}, {formatSize(3 << 30), "3 GiB"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func TestNiceStep(t *testing.T) {
	t.Parallel()
	for x, want := range map[float64]float64{0.7: 1, 1: 1, 1.1: 2, 3: 5, 6: 10, 0.012: 0.02, 120: 200} {
		if got := niceStep(x); math.Abs(got-want) > 1e-9*want {
			t.Errorf("%v: %v, want %v", x, got, want)
		}
	}
}
