package fleet_test

import (
	"testing"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/jobs"
)

// A job that is started over the admin door of one daemon brings an image to
// all of them: each byte leaves the origin about once, and clients are served
// from then on without the origin.
func TestJobOfAFleet(t *testing.T) {
	t.Parallel()
	o := startOrigin(t)
	img := o.push(t, "team/job", 77, 5_000_000, 300_000)
	f := startFleet(t, fleet.Options{Nodes: 4, Origin: o.url, Configure: func(_ int, c *daemon.Config) {
		c.Admin.Listen = "127.0.0.1:0"
	}})
	client := admin.NewClient(f.Nodes[1].AdminAddr())
	job, err := client.StartJob(t.Context(), jobs.Spec{Images: []string{"team/job:v1"}, Nodes: "all"})
	if err != nil {
		t.Fatal(err)
	}
	for job, err = range client.WatchJob(t.Context(), job.ID) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if job.State != jobs.Done || len(job.Nodes) != 4 {
		t.Fatalf("job = %+v", job)
	}
	if done, total := job.Progress(); done != 4*img.Size() || total != done {
		t.Errorf("%d of %d bytes are there, want all of %d at 4 nodes", done, total, img.Size())
	}
	for _, b := range img.Blobs() {
		if least, most := o.Copies(b.Digest); least < 1 || most > 2 {
			t.Errorf("%s left the origin %d to %d times", b.Digest, least, most)
		}
	}
	o.Reset()
	c := newClient(t)
	for _, n := range f.Nodes {
		for _, b := range img.Blobs() {
			if err := get(t.Context(), c, n, img, b); err != nil {
				t.Error(err)
			}
		}
	}
	if n := o.Count(); n.BlobGets != 0 || n.ManifestGets != 0 {
		t.Errorf("%+v at the origin after the job", n)
	}
}
