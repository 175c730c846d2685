package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/proto"
)

// golden compares what a person sees with testdata/golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s has changed; if it is meant to, run go test -update\n%s\nwant:\n%s", file, got, want)
	}
}

// someJob is one that went wrong in each of the ways.
func someJob() jobs.Job {
	app, base := proto.DigestOf([]byte("app")), proto.DigestOf([]byte("base"))
	began := time.Now().Add(-2 * time.Hour)
	return jobs.Job{
		ID:      "20260102-030405-abcd",
		Spec:    jobs.Spec{Images: []string{"registry.test/app:v1", "alpine", "registry.test/none:v1"}, Nodes: "all"},
		State:   jobs.Partial,
		Created: began, Ended: began.Add(90 * time.Second),
		Images: []jobs.ImageState{
			{Image: "registry.test/app:v1", Digest: app, State: jobs.Partial},
			{Image: "alpine", Digest: base, State: jobs.Done, Stale: "the origin did not answer for 2h"},
			{Image: "registry.test/none:v1", State: jobs.Failed, Error: "not found"},
		},
		Nodes: []jobs.NodeState{
			{Node: "n1", ID: "1", Zone: "eu/berlin", State: jobs.Done, Images: []jobs.ImageProgress{
				{Image: "registry.test/app:v1", Digest: app, State: jobs.Done, Blobs: 3, BlobsDone: 3, Bytes: 3 << 20, BytesDone: 3 << 20},
				{Image: "alpine", Digest: base, State: jobs.Done, Blobs: 2, BlobsDone: 2, Bytes: 5 << 20, BytesDone: 5 << 20},
			}},
			{Node: "n2", ID: "2", State: jobs.Partial, Images: []jobs.ImageProgress{
				{Image: "registry.test/app:v1", Digest: app, State: jobs.Failed, Blobs: 3, BlobsDone: 1, Bytes: 3 << 20, BytesDone: 1 << 20, Error: "the disk is full"},
				{Image: "alpine", Digest: base, State: jobs.Done, Blobs: 2, BlobsDone: 2, Bytes: 5 << 20, BytesDone: 5 << 20},
			}},
			{Node: "n3", ID: "3", State: jobs.Failed, Error: "left before it was done"},
		},
	}
}

func TestPrintJob(t *testing.T) {
	t.Parallel()
	var w strings.Builder
	j := someJob()
	if err := printJob(&w, j); err != nil {
		t.Fatal(err)
	}
	w.WriteString("--- list\n")
	if err := printJobs(&w, []jobs.Job{j, {ID: "2", State: jobs.Running, Created: time.Now().Add(-time.Minute - time.Second), Spec: jobs.Spec{Images: []string{"alpine"}}}}); err != nil {
		t.Fatal(err)
	}
	w.WriteString("--- pulled\n")
	printPulled(&w, j)
	w.WriteString("--- error\n")
	printError(&w, unfinished(j))
	golden(t, "job", w.String())
}

func TestUnfinished(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		job  jobs.Job
		want string
	}{
		{jobs.Job{State: jobs.Done}, ""},
		{jobs.Job{ID: "7", State: jobs.Cancelled}, "job 7 was cancelled"},
		{jobs.Job{ID: "7", State: jobs.Failed}, "job 7 is failed"},
		{jobs.Job{ID: "7", State: jobs.Failed, Error: "no node is in zone eu"}, "no node is in zone eu"},
	} {
		got := ""
		if err := unfinished(tt.job); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.job, got, tt.want)
		}
	}
}

func TestPrintCache(t *testing.T) {
	t.Parallel()
	var w strings.Builder
	d := proto.DigestOf([]byte("layer"))
	for _, err := range []error{
		printUse(&w, cache.Use{Blobs: 1, Bytes: 1 << 20, Free: 10 << 30, Reserve: 1 << 30}),
		printUse(&w, cache.Use{
			Blobs: 1234, Bytes: 150 << 30, Partials: 2, Promised: 3 << 30, Quota: 200 << 30, Reserve: 10 << 30, Free: 90 << 30,
			Pinned: 12, PinnedBytes: 4 << 30, Adopted: 40,
		}),
		printGC(&w, cache.GCReport{DryRun: true, Before: 190 << 30, Freed: 3 << 30, Target: 170 << 30, Short: 17 << 30, Records: 1, Blobs: []cache.GCBlob{
			{Digest: d, Size: 2 << 30, Last: time.Now().Add(-50 * time.Hour), Uses: 1.5, Why: "space"},
			{Digest: d, Size: 1 << 30, Partial: true, Why: "stale"},
		}}),
		printGC(&w, cache.GCReport{Before: 10}),
		printPins(&w, nil),
		printPins(&w, []cache.Pin{{Pattern: "ghcr.io/team/**", Fixed: true, Blobs: 12, Bytes: 4 << 30}, {Pattern: "docker.io/library/alpine:3.20"}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "cache", w.String())
	if err := damage(cache.ScrubReport{Blobs: 3}); err != nil {
		t.Error(err)
	}
	err := damage(cache.ScrubReport{Damaged: []proto.Digest{d}, Chunks: 2})
	if want := d.String() + " was damaged, and is set aside\n2 chunks of blobs in part were damaged, and are dropped\ndamage comes from the disk, its cable or the memory; look at the system's log"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestMeter: elsewhere than on a terminal there is a line now and then for all.
func TestMeter(t *testing.T) {
	t.Parallel()
	var w strings.Builder
	m := &meter{w: &w, rows: make(map[string]*row), told: time.Now().Add(-time.Hour)}
	m.show("a", 1<<20, 4<<20)
	m.show("b", 1<<20, 4<<20)
	m.told = m.told.Add(-time.Hour)
	m.show("b", 3<<20, 4<<20)
	m.say("something of %s", "note")
	m.close()
	m.close()
	m.show("b", 4<<20, 4<<20)
	if got, want := w.String(), "shoal:  25 %, 1.0 MiB of 4.0 MiB\nshoal:  50 %, 4.0 MiB of 8.0 MiB\nshoal: something of note\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
