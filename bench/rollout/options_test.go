package rollout

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/bench/report"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("got\n%swant\n%s", text, want)
	}
}

const mbit = 1e6 / 8

// usual returns options that make sense.
func usual() Options {
	return Options{
		Nodes: 8, Size: 64 << 20, Layers: 1, NodeRate: 100 * mbit, OriginRate: 100 * mbit,
		Mode: report.ModeShoal, Security: "tls",
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Options){
		"usual":        func(*Options) {},
		"one node":     func(o *Options) { o.Nodes, o.Size = 1, 1 },
		"zones":        func(o *Options) { o.Zones, o.CrossZoneRate, o.Delay = 4, 10*mbit, 10*time.Millisecond },
		"slow":         func(o *Options) { o.Slow = Slow{Share: 0.1, Rate: 10 * mbit} },
		"late":         func(o *Options) { o.Arrival = Arrival{Rate: 5} },
		"no scheduler": func(o *Options) { o.Mode, o.Warm = report.ModeNoScheduler, true },
		"faults": func(o *Options) {
			o.Faults = []Fault{{"kill", "scheduler", time.Second}, {"cut", "origin", 0}, {"stop", "node-8", 0}, {"kill", "owner", 0}}
		},
	} {
		o := usual()
		change(&o)
		if err := o.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMistakes keeps what is said of options that make no sense.
func TestMistakes(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	for _, tc := range []struct {
		name   string
		change func(*Options)
	}{
		{"nothing", func(o *Options) { *o = Options{} }},
		{"nodes", func(o *Options) { o.Nodes = 100000 }},
		{"negative", func(o *Options) { o.Nodes, o.Size, o.Layers, o.NodeRate, o.Zones, o.Delay = -1, -1, -1, -1, -1, -1 }},
		{"layers without a byte", func(o *Options) { o.Layers, o.Size = 4, 3 }},
		{"rates", func(o *Options) { o.NodeRate, o.OriginRate, o.SeedRate = 1, 1e15, 5 }},
		{"mode", func(o *Options) { o.Mode, o.Security, o.LogLevel = "fast", "rot13", "loud" }},
		{"seed without a scheduler", func(o *Options) { o.Mode, o.SeedRate = report.ModeNoScheduler, mbit }},
		{"warm and direct", func(o *Options) { o.Mode, o.Warm = report.ModeDirect, true }},
		{"congestion", func(o *Options) { o.Congestion = "../cubic" }},
		{"congestion in process", func(o *Options) { o.Congestion, o.InProcess = "bbr", true }},
		{"zones", func(o *Options) { o.Zones = 9 }},
		{"cross-zone rate of one zone", func(o *Options) { o.CrossZoneRate = mbit }},
		{"delay", func(o *Options) { o.Delay = time.Hour }},
		{"all slow", func(o *Options) { o.Slow = Slow{Count: 8, Rate: mbit} }},
		{"slow and faster", func(o *Options) { o.Slow = Slow{Share: 0.1, Rate: 1000 * mbit} }},
		{"late for days", func(o *Options) { o.Arrival = Arrival{Rate: 0.0001} }},
		{"slow links", func(o *Options) { o.Size, o.NodeRate = 1<<40, mbit }},
		{"fault of nobody", func(o *Options) { o.Faults = []Fault{{"kill", "node-9", 0}} }},
		{"fault of no scheduler", func(o *Options) {
			o.Mode, o.Faults = report.ModeNoScheduler, []Fault{{"kill", "scheduler", time.Second}}
		}},
		{"fault of a node that has no daemon", func(o *Options) { o.Mode, o.Faults = report.ModeDirect, []Fault{{"kill", "node-1", 0}} }},
		{"fault tomorrow", func(o *Options) { o.Faults = []Fault{{"kill", "node-1", 24 * time.Hour}} }},
		{"in one process", func(o *Options) {
			o.InProcess, o.Zones, o.CrossZoneRate, o.Delay = true, 2, mbit, time.Millisecond
			o.Registry, o.Logs, o.Faults = "registry", "logs", []Fault{{"kill", "node-1", 0}}
		}},
	} {
		o := usual()
		tc.change(&o)
		err := o.Validate()
		if err == nil {
			t.Errorf("%s: no error", tc.name)
			continue
		}
		fmt.Fprintf(&said, "# %s\n%s\n\n", tc.name, err)
	}
	golden(t, "mistakes.golden", said.String())
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"kill scheduler@2s", "stop node-12@1.5s", "restart owner@0s", "cut origin@1m0s"} {
		if f, err := ParseFault(s); err != nil || f.String() != s {
			t.Errorf("%q: %v, %v", s, f, err)
		}
	}
	for _, s := range []string{"together", "poisson:5/s", "poisson:0.5/s"} {
		if a, err := ParseArrival(s); err != nil || a.String() != s {
			t.Errorf("%q: %v, %v", s, a, err)
		}
	}
	for _, s := range []string{"10%:10mbit", "2:1gbit", "12.5%:100kbit"} {
		if w, err := ParseSlow(s); err != nil || w.String() != s {
			t.Errorf("%q: %v, %v", s, w, err)
		}
	}
}

// TestParseMistakes keeps what is said of flags that cannot be read.
func TestParseMistakes(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	try := func(what string, parse func(string) error, inputs ...string) {
		for _, in := range inputs {
			if err := parse(in); err != nil {
				fmt.Fprintf(&said, "%s: %s\n", what, err)
			} else {
				t.Errorf("%s %q: no error", what, in)
			}
		}
	}
	try("fault", func(s string) error { _, err := ParseFault(s); return err },
		"", "kill", "kill scheduler", "kill @2s", "kill scheduler@", "kill scheduler@2", "kill scheduler@-1s", "kill the scheduler@2s",
		"explode scheduler@2s", "kill node@2s", "kill node-0@2s", "kill node-01@2s", "kill node--1@2s", "kill Scheduler@2s")
	try("arrival", func(s string) error { _, err := ParseArrival(s); return err },
		"", "later", "poisson", "poisson:", "poisson:0/s", "poisson:-1/s", "poisson:inf/s", "poisson:NaN/s", "poisson:5/m")
	try("slow", func(s string) error { _, err := ParseSlow(s); return err },
		"", "10%", "10mbit", "0%:10mbit", "100%:10mbit", "NaN%:10mbit", "0:10mbit", "-1:10mbit", "1.5:10mbit", "10%:fast", "10%:")
	golden(t, "flags.golden", said.String())
}

// TestMembersCongestion: a congestion control that was asked for is all hosts', what
// members send to each other included; else that is their own default.
func TestMembersCongestion(t *testing.T) {
	for _, tt := range []struct{ asked, hosts, members string }{
		{"", "cubic", "auto"},
		{"cubic", "cubic", "system"},
		{"bbr", "bbr", "system"},
		{System, System, "system"},
	} {
		if o := (Options{Congestion: tt.asked}).filled(); o.Congestion != tt.hosts || o.members != tt.members {
			t.Errorf("%q: hosts %q, members %q; want %q, %q", tt.asked, o.Congestion, o.members, tt.hosts, tt.members)
		}
	}
}
