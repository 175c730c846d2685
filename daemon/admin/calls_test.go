package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/proto"
)

// asked is a node that remembers what it was asked to change.
type asked struct {
	mu  sync.Mutex // protects the field below
	did []string
}

func (a *asked) note(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.did = append(a.did, fmt.Sprintf(format, args...))
}

func (a *asked) take() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := strings.Join(a.did, "; ")
	a.did = nil
	return s
}

var (
	blob = proto.Blob{Digest: proto.DigestOf([]byte("hello")), Size: 5}
	job  = jobs.Job{
		ID: "20261121-101112-abcdef", Spec: jobs.Spec{Images: []string{"a"}, Nodes: "all"}, State: jobs.Running,
		Created: time.Date(2026, 11, 21, 10, 11, 12, 0, time.UTC),
		Images:  []jobs.ImageState{{Image: "a", Digest: blob.Digest, State: jobs.Running}},
		Nodes:   []jobs.NodeState{{Node: "n", ID: "i", State: jobs.Running, Images: []jobs.ImageProgress{{Image: "a", Digest: blob.Digest, Bytes: 5}}}},
	}
	use       = cache.Use{Bytes: 1, Blobs: 2, Quota: 3}
	gc        = cache.GCReport{DryRun: true, Freed: 7, Blobs: []cache.GCBlob{{Digest: blob.Digest, Size: 5, Why: "space"}}}
	scrubbing = cache.ScrubProgress{Started: time.Unix(1_700_000_000, 0).UTC(), Blobs: 3, Bytes: 30, BlobsDone: 1, BytesDone: 10, Damaged: 1}
	scrub     = cache.ScrubReport{Blobs: 3, Damaged: []proto.Digest{blob.Digest}, Took: time.Second}
	pins      = []cache.Pin{{Pattern: "docker.io/library/*", Fixed: true, Blobs: 1, Bytes: 2}}
	errDisk   = errors.New("the disk is broken")
)

// config is that of a node whose answers are all known.
func (a *asked) config() admin.Config {
	ended := job
	ended.State = jobs.Done
	return admin.Config{
		StartJob: func(_ context.Context, s jobs.Spec) (jobs.Job, error) {
			a.note("start %v", s)
			switch s.Images[0] {
			case "Invalid":
				return jobs.Job{}, fmt.Errorf("%w: no such name", jobs.ErrInvalid)
			case "busy":
				return jobs.Job{}, jobs.ErrBusy
			case "disk":
				return jobs.Job{}, errDisk
			}
			return job, nil
		},
		Job:  func(id string) (jobs.Job, bool) { return job, id == job.ID },
		Jobs: func() []jobs.Job { return []jobs.Job{job} },
		WatchJob: func(context.Context, string) iter.Seq[jobs.Job] {
			return func(yield func(jobs.Job) bool) { _ = yield(job) && yield(ended) }
		},
		CancelJob: func(id string) error {
			a.note("cancel %s", id)
			switch id {
			case "ended":
				return jobs.ErrEnded
			case job.ID:
				return nil
			}
			return fmt.Errorf("%s: %w", id, jobs.ErrNotFound)
		},
		Webhook: func(_ context.Context, events []jobs.Event) ([]jobs.Job, error) {
			a.note("events %v", events)
			if len(events) == 0 {
				return nil, nil
			}
			return []jobs.Job{job}, nil
		},
		Cache: func() cache.Use { return use },
		GC: func(_ context.Context, o cache.GCOptions) (cache.GCReport, error) {
			a.note("gc %v", o)
			return gc, nil
		},
		Scrub:         func(context.Context) (cache.ScrubReport, error) { a.note("scrub"); return scrub, nil },
		ScrubProgress: func() (cache.ScrubProgress, bool) { return scrubbing, true },
		Pins:          func() []cache.Pin { return pins },
		Pin: func(p string) error {
			a.note("pin %s", p)
			if p == "[" {
				return errors.New("not a pattern")
			}
			return nil
		},
		Unpin: func(p string) error {
			a.note("unpin %s", p)
			if p == "none" {
				return cache.ErrNotPinned
			}
			return nil
		},
		PutBlob: func(_ context.Context, b proto.Blob, r io.Reader) error {
			data, err := io.ReadAll(r)
			a.note("blob %d %s", b.Size, data)
			if string(data) == "wrong" {
				return cache.ErrDigest
			}
			return err
		},
		PutImage: func(_ context.Context, i jobs.Image) error {
			a.note("image %s/%s:%s", i.Upstream, i.Repository, i.Tag)
			if i.Repository == "holes" {
				return jobs.ErrIncomplete
			}
			return nil
		},
		Offline:    func() bool { return true },
		SetOffline: func(on bool) { a.note("offline %t", on) },
	}
}

func TestCallsOfTheClient(t *testing.T) {
	t.Parallel()
	var a asked
	c := admin.NewClient(serve(t, a.config()).Listener.Addr().String())
	ctx := t.Context()
	same := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s = %+v, %v, want %+v", what, got, err, want)
		}
	}
	did := func(want string, err error) {
		t.Helper()
		if got := a.take(); err != nil || got != want {
			t.Errorf("it did %q, %v, want %q", got, err, want)
		}
	}
	j, err := c.StartJob(ctx, jobs.Spec{Images: []string{"a"}, Nodes: "all"})
	same("StartJob", j, job, err)
	did("start {[a] [] false all}", err)
	all, err := c.Jobs(ctx)
	same("Jobs", all, []jobs.Job{job}, err)
	j, err = c.Job(ctx, job.ID)
	same("Job", j, job, err)
	var states []jobs.State
	for j, err := range c.WatchJob(ctx, job.ID) {
		if err != nil {
			t.Error(err)
		}
		states = append(states, j.State)
	}
	same("WatchJob", states, []jobs.State{jobs.Running, jobs.Done}, nil)
	did("cancel "+job.ID, c.CancelJob(ctx, job.ID))
	u, err := c.Cache(ctx)
	same("Cache", u, use, err)
	r, err := c.GC(ctx, cache.GCOptions{DryRun: true})
	same("GC", r, gc, err)
	did("gc {true}", err)
	s, err := c.Scrub(ctx)
	same("Scrub", s, scrub, err)
	did("scrub", err)
	at, err := c.ScrubProgress(ctx)
	same("ScrubProgress", at, admin.Scrubbing{Running: true, ScrubProgress: scrubbing}, err)
	p, err := c.Pins(ctx)
	same("Pins", p, pins, err)
	did("pin docker.io/library/*:v*", c.Pin(ctx, "docker.io/library/*:v*"))
	did("unpin ghcr.io/a b&c/**", c.Unpin(ctx, "ghcr.io/a b&c/**"))
	did("offline true", c.SetOffline(ctx, true))
	did("offline false", c.SetOffline(ctx, false))
	off, err := c.Offline(ctx)
	same("Offline", off, true, err)
	did("blob 5 hello", c.PutBlob(ctx, blob, strings.NewReader("hello")))
	did("image docker.io/library/a:1", c.PutImage(ctx, jobs.Image{Upstream: "docker.io", Repository: "library/a", Tag: "1", Digest: blob.Digest}))
}

// What the node refuses, the client says in the node's words.
func TestRefusalsOfTheClient(t *testing.T) {
	t.Parallel()
	var a asked
	c := admin.NewClient(serve(t, a.config()).Listener.Addr().String())
	ctx := t.Context()
	start := func(image string) error {
		_, err := c.StartJob(ctx, jobs.Spec{Images: []string{image}})
		return err
	}
	one := func(id string) error { _, err := c.Job(ctx, id); return err }
	var watched error
	for _, watched = range c.WatchJob(ctx, "none") {
	}
	for _, test := range []struct {
		err    error
		status int
		text   string
	}{
		{start("Invalid"), 400, "no such name"},
		{start("busy"), 503, "too many jobs"},
		{start("disk"), 500, "the disk is broken"},
		{one("a/../b"), 404, `there is no job "a/../b" here`},
		{watched, 404, `there is no job "none" here`},
		{c.CancelJob(ctx, "none"), 404, "no such job"},
		{c.CancelJob(ctx, "ended"), 409, "has ended"},
		{c.Pin(ctx, "["), 400, "not a pattern"},
		{c.Unpin(ctx, "none"), 404, "not pinned"},
		{c.Unpin(ctx, ""), 400, "?pattern="},
		{c.PutBlob(ctx, blob, strings.NewReader("wrong")), 422, "does not match the digest"},
		{c.PutImage(ctx, jobs.Image{Repository: "holes"}), 422, "not complete"},
	} {
		var r *admin.Refusal
		if !errors.As(test.err, &r) || r.Status != test.status || !strings.Contains(r.Error(), test.text) {
			t.Errorf("%v, want %d with %q", test.err, test.status, test.text)
		}
	}
}

// A watch that ends before its job does is an error.
func TestWatchIsCut(t *testing.T) {
	t.Parallel()
	var a asked
	cfg := a.config()
	cfg.WatchJob = func(context.Context, string) iter.Seq[jobs.Job] {
		return func(yield func(jobs.Job) bool) { yield(job) }
	}
	c := admin.NewClient(serve(t, cfg).Listener.Addr().String())
	var errs []error
	for _, err := range c.WatchJob(t.Context(), job.ID) {
		errs = append(errs, err)
	}
	if len(errs) != 2 || errs[0] != nil || errs[1] == nil || !strings.Contains(errs[1].Error(), "the job goes on when it is back") {
		t.Errorf("watch = %v", errs)
	}
}

// request sends one to srv, as curl or a browser would, with headers given as
// "Name: value".
func request(t *testing.T, method, url, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if req.Header.Set(name, value); name == "Host" {
			req.Host = value
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

const asJSON = "Content-Type: application/json"

func TestBadRequests(t *testing.T) {
	t.Parallel()
	var a asked
	srv := serve(t, a.config())
	for _, test := range []struct {
		method, path, body string
		headers            []string
		status             int
		want               string
	}{
		{"POST", "/v1/jobs", `{"images":["a"]}`, nil, 415, "send it as application/json"},
		{"POST", "/v1/jobs", `{"images":["a"]}`, []string{"Content-Type: text/plain"}, 415, "send it as application/json"},
		{"POST", "/v1/jobs", `{"images":["a"],"platform":"x"}`, []string{asJSON}, 400, `unknown field`},
		{"POST", "/v1/jobs", `{"images":`, []string{asJSON}, 400, "not understood"},
		{"POST", "/v1/jobs", `{} {}`, []string{asJSON}, 400, "more after its end"},
		{"POST", "/v1/jobs", `{"images":["` + strings.Repeat("a", 3<<20) + `"]}`, []string{asJSON}, 413, "too large"},
		{"PUT", "/v1/offline", `{}`, []string{asJSON}, 400, `say {`},
		{"PUT", "/v1/offline", `true`, []string{asJSON}, 400, "not understood"},
		{"DELETE", "/v1/jobs/x", ``, nil, 415, "application/json"},
		{"DELETE", "/v1/cache/pins?pattern=x", ``, nil, 415, "application/json"},
		{"POST", "/v1/cache/gc", `{}`, nil, 415, "application/json"},
		{"POST", "/v1/cache/scrub", `{}`, nil, 415, "application/json"},
		{"PUT", "/v1/cache/blobs/" + blob.Digest.String() + "?size=5", "hello", []string{asJSON}, 415, "octet-stream"},
		{"PUT", "/v1/cache/blobs/" + blob.Digest.String(), "hello", []string{"Content-Type: application/octet-stream"}, 400, "?size="},
		{"PUT", "/v1/cache/blobs/" + blob.Digest.String() + "?size=-1", "hello", []string{"Content-Type: application/octet-stream"}, 400, "-1 bytes"},
		{"PUT", "/v1/cache/blobs/" + blob.Digest.String() + "?size=6", "hello", []string{"Content-Type: application/octet-stream"}, 400, "the body has 5 bytes, the blob 6"},
		{"PUT", "/v1/cache/blobs/sha256:x?size=5", "hello", []string{"Content-Type: application/octet-stream"}, 400, "hexadecimal"},
		{"POST", "/v1/webhooks/harbor", `{`, []string{asJSON}, 400, "webhook of Harbor"},
		{"POST", "/v1/webhooks/distribution", `{}`, []string{asJSON}, 400, "no events"},
		{"POST", "/v1/webhooks/docker", `{}`, []string{asJSON}, 404, ""},
		{"PATCH", "/v1/offline", `{}`, []string{asJSON}, 405, ""},
	} {
		status, body := request(t, test.method, srv.URL+test.path, test.body, test.headers...)
		if status != test.status || !strings.Contains(body, test.want) {
			t.Errorf("%s %s: %d %q, want %d with %q", test.method, test.path, status, body, test.status, test.want)
		}
		if did := a.take(); did != "" {
			t.Errorf("%s %s did %q", test.method, test.path, did)
		}
	}
}

// A page that an operator's browser shows cannot make the node do anything.
func TestOtherSites(t *testing.T) {
	t.Parallel()
	var a asked
	srv := serve(t, a.config())
	addr := srv.Listener.Addr().String()
	_, port, _ := strings.Cut(addr, ":")
	for _, test := range []struct {
		headers []string
		ok      bool
	}{
		{nil, true},
		{[]string{"Host: node-1.example:" + port}, true}, // no browser
		{[]string{"Origin: http://" + addr}, true},
		{[]string{"Origin: http://localhost:" + port, "Host: localhost:" + port}, true},
		{[]string{"Sec-Fetch-Site: same-origin"}, true},
		{[]string{"Origin: https://evil.example"}, false},
		{[]string{"Origin: null"}, false},
		{[]string{"Origin: http://127.0.0.1:1"}, false},
		{[]string{"Sec-Fetch-Site: cross-site"}, false},
		{[]string{"Sec-Fetch-Site: same-site"}, false},
		// evil.example leads to the node's own address now.
		{[]string{"Origin: http://evil.example:" + port, "Host: evil.example:" + port}, false},
		{[]string{"Sec-Fetch-Site: same-origin", "Host: evil.example:" + port}, false},
	} {
		status, body := request(t, "PUT", srv.URL+"/v1/offline", `{"offline":true}`, append(test.headers, asJSON)...)
		did := a.take()
		if test.ok != (status == 204) || test.ok != (did == "offline true") || !test.ok && status != 403 {
			t.Errorf("%v: %d %q, it did %q", test.headers, status, body, did)
		}
	}
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	var a asked
	cfg := a.config()
	cfg.WebhookToken = "s3cret"
	srv, open := serve(t, cfg), serve(t, a.config())
	const (
		harbor = `{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"tag":"v1","resource_url":"h.example/a/b:v1"}],"repository":{"repo_full_name":"a/b"}}}`
		push   = `{"events":[{"action":"push","target":{"mediaType":"application/vnd.oci.image.index.v1+json","repository":"a/b","tag":"v1"},"request":{"host":"h.example"}}]}`
		pull   = `{"events":[{"action":"pull","target":{"mediaType":"application/vnd.oci.image.index.v1+json","repository":"a/b","tag":"v1"},"request":{"host":"h.example"}}]}`
	)
	for _, test := range []struct {
		url, body string
		headers   []string
		status    int
		did       string
	}{
		{srv.URL + "/v1/webhooks/harbor", harbor, []string{asJSON, "Authorization: s3cret"}, 202, "events [{h.example a/b v1 }]"},
		{srv.URL + "/v1/webhooks/harbor", harbor, []string{"Content-Type: application/cloudevents+json", "Authorization: Bearer s3cret"}, 202, "events [{h.example a/b v1 }]"},
		{srv.URL + "/v1/webhooks/distribution", push, []string{"Content-Type: application/vnd.docker.distribution.events.v2+json", "Authorization: bearer s3cret"}, 202, "events [{h.example a/b v1 }]"},
		{srv.URL + "/v1/webhooks/distribution", pull, []string{asJSON, "Authorization: s3cret"}, 202, "events []"},
		{open.URL + "/v1/webhooks/harbor", harbor, []string{asJSON}, 202, "events [{h.example a/b v1 }]"},
		{srv.URL + "/v1/webhooks/harbor", harbor, []string{asJSON}, 401, ""},
		{srv.URL + "/v1/webhooks/harbor", harbor, []string{asJSON, "Authorization: Bearer"}, 401, ""},
		{srv.URL + "/v1/webhooks/harbor", harbor, []string{asJSON, "Authorization: s3cre"}, 401, ""},
		{srv.URL + "/v1/webhooks/harbor", harbor, []string{asJSON, "Authorization: Basic s3cret"}, 401, ""},
		{srv.URL + "/v1/webhooks/harbor", harbor, []string{"Content-Type: text/plain", "Authorization: s3cret"}, 415, ""},
	} {
		status, body := request(t, "POST", test.url, test.body, test.headers...)
		if did := a.take(); status != test.status || did != test.did {
			t.Errorf("%s %v: %d %q, it did %q; want %d and %q", test.url, test.headers, status, body, did, test.status, test.did)
		}
		if strings.Contains(body, "s3cret") {
			t.Errorf("the token is in the answer: %s", body)
		}
	}
}

// What a node does not offer is not there.
func TestNotOffered(t *testing.T) {
	t.Parallel()
	var a asked
	srv := serve(t, admin.Config{})
	for _, path := range []string{"/v1/jobs", "/v1/jobs/x", "/v1/cache", "/v1/cache/pins", "/v1/offline"} {
		if status, _ := request(t, "GET", srv.URL+path, ""); status != 404 {
			t.Errorf("GET %s: %d", path, status)
		}
	}
	for _, path := range []string{"/v1/jobs", "/v1/cache/gc", "/v1/cache/scrub", "/v1/cache/pins", "/v1/webhooks/harbor"} {
		if status, _ := request(t, "POST", srv.URL+path, "{}", asJSON); status != 404 {
			t.Errorf("POST %s: %d", path, status)
		}
	}
	empty := a.config()
	empty.Jobs, empty.Pins = func() []jobs.Job { return nil }, func() []cache.Pin { return nil }
	srv = serve(t, empty)
	for _, path := range []string{"/v1/jobs", "/v1/cache/pins"} {
		if _, body := request(t, "GET", srv.URL+path, ""); body != "[]\n" {
			t.Errorf("GET %s of nothing: %q", path, body)
		}
	}
}
