package jobs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
)

// A job goes on after a restart of the node that coordinates it, with what it
// had found out.
func TestRestart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a, c := b.node(t, "a", ""), b.node(t, "c", "")
	img := b.push(t, "team/app", "1", 3_000_000)
	b.reg.SetFaults(registry.Faults{StallAfter: 2_000_000})
	id := a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID
	waiting := a.start(t, Spec{Images: []string{"team/none:1"}}).ID
	a.until(t, id, func(j Job) bool { done, _ := j.Progress(); return len(j.Nodes) == 2 && done > 2_000_000 })
	a.until(t, waiting, func(j Job) bool { return j.State.Ended() })
	// A kill at this moment would lose nothing that was found out.
	if kept, err := a.jobs.store.read(id); err != nil || kept.Images[0].Digest != img.Manifest.Digest || len(kept.Nodes) != 2 {
		t.Errorf("kept are %+v, %v", kept, err)
	}
	a.stopJobs()
	if job, ok := a.jobs.Get(id); !ok || job.State.Ended() {
		t.Errorf("a job that was stopped = %+v", job)
	}
	until(t, func() bool { c.jobs.mu.Lock(); defer c.jobs.mu.Unlock(); return c.jobs.serving == 0 })
	b.push(t, "team/app", "1", 1000) // the tag moves: nothing to the job
	b.reg.SetFaults(registry.Faults{})
	a.open(t)
	if job, ok := a.jobs.Get(id); !ok || job.State != Waiting || job.Images[0].Digest != img.Manifest.Digest {
		t.Errorf("before Run: %+v", job)
	}
	a.run(t)
	job := a.ended(t, id)
	if job.State != Done || len(job.Nodes) != 2 {
		t.Errorf("job = %+v", job)
	}
	a.whole(t, img)
	c.whole(t, img)
	// What has ended is there after another one, as it was.
	a.stopJobs()
	a.open(t)
	a.run(t)
	if again, ok := a.jobs.Get(id); !ok || again.State != Done || len(again.Nodes) != 2 || !again.Ended.Equal(job.Ended) {
		t.Errorf("after a restart: %+v", again)
	}
	if all := a.jobs.List(); len(all) != 2 || len(all[1].Nodes) != 0 {
		t.Errorf("list = %+v", all)
	}
}

// A node that shuts down, in whatever order its rooms end, has not failed its
// part.
func TestShutdownIsNoFailure(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a, c := b.node(t, "a", ""), b.node(t, "c", "")
	b.push(t, "team/app", "1", 3_000_000)
	b.reg.SetFaults(registry.Faults{StallAfter: 2_000_000})
	t.Cleanup(func() { b.reg.SetFaults(registry.Faults{}) })
	id := a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID
	a.until(t, id, func(j Job) bool { done, _ := j.Progress(); return len(j.Nodes) == 2 && done > 2_000_000 })
	for _, n := range []*node{c, a} { // the one that was asked, and the one that asks
		n.stopPuller()
		time.Sleep(50 * time.Millisecond) // it would have failed by then
	}
	a.stopJobs()
	kept, err := a.jobs.store.read(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range append(kept.Nodes, NodeState{State: kept.State}) {
		if n.State.Ended() || n.Error != "" {
			t.Errorf("%+v has ended", n)
		}
	}
}

func until(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not get that far")
		}
	}
}

func TestAHundredAreKept(t *testing.T) {
	t.Parallel()
	n := newBed(t).node(t, "a", "")
	n.stopJobs()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(n.cfg.Dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save := func(j Job) {
		t.Helper()
		data, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		write(j.ID+suffix, data)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range keep + 5 {
		created := start.Add(time.Duration(i) * time.Second)
		save(Job{ID: created.Format("20060102-150405-") + "000000", Created: created, State: Done})
	}
	old := Job{
		ID: "20251231-000000-000000", State: Running, Created: start.Add(-time.Hour), Spec: Spec{Images: []string{"a"}},
		Images: []ImageState{{Image: "a", State: Waiting}},
	}
	save(old)
	for name, text := range map[string]string{"x.json": "{", "y.json": `{"id":"z"}`, "z.json.part": "{}"} {
		write(name, []byte(text))
	}
	n.open(t)
	all := n.jobs.List()
	if len(all) != keep+1 || all[keep].ID != old.ID || all[0].Created != start.Add(time.Duration(keep+4)*time.Second) {
		t.Errorf("%d jobs are kept, from %v to %v", len(all), all[0], all[len(all)-1])
	}
	files, err := os.ReadDir(n.cfg.Dir)
	if err != nil || len(files) != keep+1+2 { // and the two that are no jobs
		t.Errorf("%d files, %v", len(files), err)
	}
	if err := n.jobs.Cancel(old.ID); err != nil {
		t.Error(err)
	}
	if all := n.jobs.List(); len(all) != keep {
		t.Errorf("%d jobs after one more has ended, want %d", len(all), keep)
	}
}

// A directory that cannot be written to is an error of Start, and no job.
func TestJobThatCannotBeKept(t *testing.T) {
	t.Parallel()
	n := newBed(t).node(t, "a", "")
	if err := os.RemoveAll(n.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := n.jobs.Start(t.Context(), Spec{Images: []string{"a"}}); err == nil || !strings.Contains(err.Error(), "keep job") {
		t.Errorf("Start = %v", err)
	}
	if all := n.jobs.List(); len(all) != 0 {
		t.Errorf("%d jobs", len(all))
	}
}
