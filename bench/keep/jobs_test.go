package keep_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/jobs"
)

// startMany is start with several nodes, each with a data folder of its own.
func startMany(t *testing.T, nodes int, change func(c *daemon.Config)) *bed {
	t.Helper()
	b := startOrigin(t)
	b.fleet = startFleet(t, b.url, nodes, change)
	b.node = b.fleet.Nodes[0]
	return b
}

// finish waits for a job's end and returns it.
func finish(t *testing.T, c *admin.Client, j jobs.Job) jobs.Job {
	t.Helper()
	last := j
	for at, err := range c.WatchJob(t.Context(), j.ID) {
		if err != nil {
			t.Fatal(err)
		}
		last = at
	}
	return last
}

// here fails unless a node has all of an image without the origin.
func (b *bed) here(n *fleet.Node, img registry.Image) {
	b.t.Helper()
	for _, path := range []string{"manifests/" + img.Tag, "blobs/" + img.Layers[0].Digest.String()} {
		a, err := b.try(b.t.Context(), n, "GET", img.Repository+"/"+path)
		if err != nil || a.status != 200 {
			b.t.Errorf("%s has no %s: %d %.200s %v", n.Config.Name, path, a.status, a.body, err)
		}
	}
}

// TestJobBringsImagesToAllNodes: the origin sends them once.
func TestJobBringsImagesToAllNodes(t *testing.T) {
	t.Parallel()
	b := startMany(t, 3, nil)
	img := b.push("team/app", "v1", 1, 3<<20, 2<<20)
	c := b.admin()
	j, err := c.StartJob(t.Context(), jobs.Spec{
		Images: []string{"origin.test/team/app:v1", "origin.test/team/missing:v1"}, Nodes: "all",
	})
	if err != nil {
		t.Fatal(err)
	}
	j = finish(t, c, j)
	if j.State != jobs.Partial || len(j.Nodes) != 3 || j.Images[0].State != jobs.Done || j.Images[1].State != jobs.Failed {
		t.Errorf("the job ended as %+v", j)
	}
	if !strings.Contains(j.Images[1].Error, "missing") {
		t.Errorf("the missing image's error is %q", j.Images[1].Error)
	}
	for _, blob := range img.Blobs() {
		if least, most := b.Copies(blob.Digest); least != 1 || most != 1 {
			t.Errorf("blob of %d bytes left the origin %d to %d times, want once", blob.Size, least, most)
		}
	}
	b.SetFaults(registry.Faults{Status: 500, ManifestStatus: 500})
	for _, n := range b.fleet.Nodes {
		b.here(n, img)
	}
}

// TestJobSurvivesItsNode: the one that coordinates is restarted in the middle.
func TestJobSurvivesItsNode(t *testing.T) {
	t.Parallel()
	b := startMany(t, 2, nil)
	img := b.push("team/app", "v1", 1, 8<<20)
	b.SetFaults(registry.Faults{StallAfter: 1 << 20})
	j, err := b.admin().StartJob(t.Context(), jobs.Spec{Images: []string{"origin.test/team/app:v1"}, Nodes: "all"})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the pull to begin", func() bool { return b.Count().BlobBytes > 0 })
	b.restart()
	b.SetFaults(registry.Faults{})
	if j = finish(t, b.admin(), j); j.State != jobs.Done {
		t.Errorf("after the restart the job ended as %+v", j)
	}
	b.SetFaults(registry.Faults{Status: 500, ManifestStatus: 500})
	for _, n := range b.fleet.Nodes {
		b.here(n, img)
	}
}

// TestJobSurvivesItsScheduler: the process that schedules the blobs dies in the
// middle.
func TestJobSurvivesItsScheduler(t *testing.T) {
	t.Parallel()
	b := startOrigin(t)
	b.fleet = startOptions(t, fleet.Options{Nodes: 2, Origin: b.url, Scheduler: true}, nil)
	b.node = b.fleet.Nodes[0]
	img := b.push("team/app", "v1", 1, 8<<20)
	b.SetFaults(registry.Faults{StallAfter: 1 << 20})
	j, err := b.admin().StartJob(t.Context(), jobs.Spec{Images: []string{"origin.test/team/app:v1"}, Nodes: "all"})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the pull to begin", func() bool { return b.Count().BlobBytes > 0 })
	if err := b.fleet.Scheduler.Stop(); err != nil {
		t.Fatal(err)
	}
	b.SetFaults(registry.Faults{})
	if j = finish(t, b.admin(), j); j.State != jobs.Done || len(j.Nodes) != 2 {
		t.Errorf("without the scheduler the job ended as %+v", j)
	}
	b.SetFaults(registry.Faults{Status: 500, ManifestStatus: 500})
	for _, n := range b.fleet.Nodes {
		b.here(n, img)
	}
}

// TestWebhookStartsAJob is of docker-registry's notifications and Harbor's.
func TestWebhookStartsAJob(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"distribution", "harbor"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := startMany(t, 2, func(c *daemon.Config) {
				c.Webhook.Rules = []daemon.WebhookRule{{Repository: "team/*", Tag: "v*", Upstream: fleet.Upstream, Nodes: "all"}}
			})
			img := b.push("team/app", "v1", 1, 1<<20)
			var body string
			switch kind {
			case "distribution":
				body = fmt.Sprintf(`{"events":[{"id":"1","action":"push","target":{"mediaType":%q,"digest":%q,"repository":"team/app","tag":"v1","url":"http://registry/v2/"},"request":{"host":"registry:5000"}}]}`,
					img.MediaType, img.Manifest.Digest)
			case "harbor":
				body = fmt.Sprintf(`{"type":"PUSH_ARTIFACT","occur_at":1,"operator":"admin","event_data":{"resources":[{"digest":%q,"tag":"v1","resource_url":"harbor.test/team/app:v1"}],"repository":{"name":"app","namespace":"team","repo_full_name":"team/app","repo_type":"private"}}}`,
					img.Manifest.Digest)
			}
			resp, err := b.client.Post("http://"+b.node.AdminAddr()+"/v1/webhooks/"+kind, "application/json", bytes.NewReader([]byte(body)))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode/100 != http.StatusOK/100 {
				t.Fatalf("the webhook answered %s", resp.Status)
			}
			all, err := b.admin().Jobs(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatalf("jobs are %v, %v", all, err)
			}
			if j := finish(t, b.admin(), all[0]); j.State != jobs.Done {
				t.Errorf("the job ended as %+v", j)
			}
			b.SetFaults(registry.Faults{Status: 500, ManifestStatus: 500})
			for _, n := range b.fleet.Nodes {
				b.here(n, img)
			}
		})
	}
}
