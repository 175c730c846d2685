package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/proto"
)

func node() admin.Status {
	return admin.Status{
		Version:       "v1",
		Name:          "node-1",
		ID:            "12D3Koo",
		Zone:          "eu/berlin",
		Roles:         "daemon",
		UptimeSeconds: 1.5,
		Members:       admin.Members([]proto.Member{{ID: "b", Name: "node-2", Roles: proto.RoleScheduler, Addr: "10.0.0.2:7051"}, {ID: "12D3Koo", Name: "node-1"}}),
		Pulls:         []admin.Pull{{Digest: proto.DigestOf([]byte("x")), Size: 10, Have: 4, FromOrigin: 1, FromPeers: 3, Origin: "docker.io/library/alpine"}},
		Bytes:         admin.Bytes{Origin: 1, Seed: 2, Zone: 3, Far: 4, Disk: 5, Duplicate: 6},
		Scheduler:     admin.Scheduler{Swarms: 1, Nodes: 2},
	}
}

func serve(t *testing.T, c admin.Config) *httptest.Server {
	t.Helper()
	if c.Status == nil {
		c.Status = node
	}
	if c.Ready == nil {
		c.Ready = func() error { return nil }
	}
	srv := httptest.NewServer(admin.New(c))
	t.Cleanup(srv.Close)
	return srv
}

func get(t *testing.T, method, url string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_test_total", Help: "h"})
	reg.MustRegister(c)
	c.Inc()
	up := serve(t, admin.Config{Gatherer: reg})
	down := serve(t, admin.Config{Ready: func() error { return errors.New("no member of the fleet answers") }})
	empty := serve(t, admin.Config{Status: func() admin.Status { return admin.Status{} }})

	for _, tt := range []struct {
		srv          *httptest.Server
		method, path string
		status       int
		body         string // contained in the answer
	}{
		{up, "GET", "/metrics", 200, "shoal_test_total 1\n"},
		{up, "GET", "/healthz", 200, "ok\n"},
		{up, "GET", "/readyz", 200, "ok\n"},
		{up, "HEAD", "/readyz", 200, ""},
		{up, "GET", "/v1/pulls", 200, `"origin":"docker.io/library/alpine"`},
		{up, "GET", "/v1/members", 200, `[{"id":"12D3Koo","name":"node-1"`},
		{up, "GET", "/v1/status", 200, `"ready":true`},
		{up, "GET", "/", 404, ""},
		{up, "GET", "/v1/", 404, ""},
		{up, "POST", "/v1/status", 405, ""},
		{up, "DELETE", "/metrics", 405, ""},
		{down, "GET", "/healthz", 200, "ok\n"},
		{down, "GET", "/readyz", 503, "not ready: no member of the fleet answers\n"},
		{down, "HEAD", "/readyz", 503, ""},
		{down, "GET", "/v1/status", 200, `"ready":false,"reason":"no member of the fleet answers"`},
		{down, "GET", "/metrics", 404, ""},
		{empty, "GET", "/v1/pulls", 200, "[]\n"},
		{empty, "GET", "/v1/members", 200, "[]\n"},
	} {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			resp, body := get(t, tt.method, tt.srv.URL+tt.path)
			if resp.StatusCode != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("%d %q, want %d with %q", resp.StatusCode, body, tt.status, tt.body)
			}
			if tt.status == 405 && !strings.Contains(resp.Header.Get("Allow"), "GET") {
				t.Errorf("Allow is %q", resp.Header.Get("Allow"))
			}
			if strings.HasPrefix(tt.path, "/v1/s") && tt.status == 200 {
				if ct := resp.Header.Get("Content-Type"); ct != "application/json" || !json.Valid([]byte(body)) {
					t.Errorf("Content-Type is %q, body %q", ct, body)
				}
				if cc := resp.Header.Get("Cache-Control"); cc != "no-store" {
					t.Errorf("Cache-Control is %q", cc)
				}
			}
		})
	}
}

func TestClientReadsWhatTheServerSays(t *testing.T) {
	t.Parallel()
	srv := serve(t, admin.Config{})
	got, err := admin.NewClient(srv.Listener.Addr().String()).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := node()
	want.Ready = true
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestClientErrors(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := l.Addr().String()
	l.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	garbage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }))
	t.Cleanup(garbage.Close)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()

	for _, tt := range []struct {
		name, addr string
		ctx        context.Context
		want       string
	}{
		{"refused", refused, t.Context(), "start one with `shoal daemon`"},
		{"another server", other.Listener.Addr().String(), t.Context(), "answered 404 Not Found; is this the address of admin.listen?"},
		{"garbage", garbage.Listener.Addr().String(), t.Context(), "is this the address of admin.listen?"},
		{"not an address", "a b", t.Context(), "write host:port"},
		{"cancelled", refused, cancelled, "context canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := admin.NewClient(tt.addr).Status(tt.ctx)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to say %q", err, tt.want)
			}
		})
	}
}
