package jobs

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/proto"
)

// What a real distribution registry says after a push.
func TestParseDistributionOfARegistry(t *testing.T) {
	t.Parallel()
	bodies := make(chan []byte, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if ct := r.Header.Get("Content-Type"); !strings.HasSuffix(ct, "+json") {
			t.Errorf("its Content-Type is %q", ct)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		bodies <- body
	}))
	t.Cleanup(receiver.Close)
	config := &configuration.Configuration{Storage: configuration.Storage{
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		"filesystem":  {"rootdirectory": t.TempDir()},
	}}
	config.Notifications.Endpoints = []configuration.Endpoint{{
		Name: "shoal", URL: receiver.URL, Timeout: patience, Threshold: 1, Backoff: time.Second,
	}}
	server := httptest.NewServer(handlers.NewApp(context.Background(), config))
	t.Cleanup(server.Close)
	img, err := registry.PushImage(t.Context(), server.URL, "team/app", "v1", []int64{1000}, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := Event{
		Registry: strings.TrimPrefix(server.URL, "http://"), Repository: "team/app", Tag: "v1", Digest: img.Manifest.Digest,
	}
	timeout := time.After(patience)
	for {
		select {
		case body := <-bodies:
			events, err := ParseDistribution(body)
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if len(events) == 0 {
				continue // a blob
			}
			if len(events) != 1 || events[0] != want {
				t.Errorf("%s is %+v, want %+v", body, events, want)
			}
			return
		case <-timeout:
			t.Fatal("the registry said nothing of the manifest")
		}
	}
}

func TestParseHarbor(t *testing.T) {
	t.Parallel()
	d, err := proto.ParseDigest("sha256:76525f02955aec223342400a080c73024c995c9db1ba2eabf7505cf3bdf3f1f0")
	if err != nil {
		t.Fatal(err)
	}
	want := []Event{{Registry: "harbor.example.com", Repository: "library/app", Tag: "v1", Digest: d}}
	for _, file := range []string{"harbor-default.json", "harbor-cloudevents.json"} {
		body, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseHarbor(body); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %+v, %v, want %+v", file, got, err, want)
		}
		other := strings.NewReplacer("PUSH_ARTIFACT", "SCANNING_COMPLETED", "artifact.pushed", "scan.completed").Replace(string(body))
		if got, err := ParseHarbor([]byte(other)); err != nil || got != nil {
			t.Errorf("another event is %+v, %v", got, err)
		}
		byDigest := strings.Replace(string(body), `"tag": "v1"`, `"tag": "`+d.String()+`"`, 1)
		if got, err := ParseHarbor([]byte(byDigest)); err != nil || len(got) != 1 || got[0].Tag != "" {
			t.Errorf("a push by digest is %+v, %v", got, err)
		}
	}
}

func TestWebhooksThatCannotBeRead(t *testing.T) {
	t.Parallel()
	many, err := json.Marshal(map[string]any{"events": make([]struct{}, maxEvents+1)})
	if err != nil {
		t.Fatal(err)
	}
	push := func(target, host string) string {
		return `{"events":[{"action":"push","target":{"mediaType":"application/vnd.oci.image.manifest.v1+json",` + target + `},"request":{"host":"` + host + `"}}]}`
	}
	harbor := func(resource, repository string) string {
		return `{"type":"PUSH_ARTIFACT","event_data":{"resources":[{` + resource + `}],"repository":{` + repository + `}}}`
	}
	for _, test := range []struct {
		parse      func([]byte) ([]Event, error)
		body, want string
	}{
		{ParseDistribution, ``, "unexpected end"},
		{ParseDistribution, `[]`, "cannot unmarshal"},
		{ParseDistribution, `{}`, "no events"},
		{ParseDistribution, string(many), "1001 events"},
		{ParseDistribution, push(`"repository":"../x"`, "a"), "event 0: repository name"},
		{ParseDistribution, push(`"repository":"x","tag":"a/b"`, "a"), "tag"},
		{ParseDistribution, push(`"repository":"x","digest":"sha256:x"`, "a"), "digest"},
		{ParseDistribution, push(`"repository":"x"`, "a/b"), "is not a registry"},
		{ParseHarbor, `{}`, "no type"},
		{ParseHarbor, `{"type":1}`, "cannot unmarshal"},
		{ParseHarbor, harbor(`"tag":"v1"`, `"name":""`), "resource 0: repository name"},
		{ParseHarbor, harbor(`"tag":"v1","resource_url":"a b/c"`, `"name":"x"`), "is not a registry"},
		{ParseHarbor, harbor(`"tag":"v/1"`, `"name":"x","namespace":"y"`), "tag"},
	} {
		if got, err := test.parse([]byte(test.body)); err == nil || got != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.200s: %+v, %v; want an error with %q", test.body, got, err, test.want)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	events := []Event{
		{Registry: "hub.example:5000", Repository: "team/app", Tag: "v1"},
		{Registry: "hub.example:5000", Repository: "team/app", Tag: "latest"},
		{Registry: "hub.example:5000", Repository: "team/app"}, // an image of an index
		{Registry: "other.example", Repository: "team/web/x", Tag: "v1"},
		{Repository: "team/nowhere", Tag: "v1"},
	}
	for _, test := range []struct {
		name  string
		rules []Rule
		want  []Spec
	}{
		{"no rule", nil, nil},
		{"any", []Rule{{}}, []Spec{{Images: []string{
			"hub.example:5000/team/app:v1", "hub.example:5000/team/app:latest", "other.example/team/web/x:v1",
		}}}},
		{"tag", []Rule{{Tag: "v*", Repository: "team/*", Registry: "hub.*"}}, []Spec{{Images: []string{"hub.example:5000/team/app:v1"}}}},
		{"upstream", []Rule{{Repository: "team/nowhere", Upstream: "hub.local", Nodes: "all", Platforms: []string{"linux/arm64"}}}, []Spec{
			{Images: []string{"hub.local/team/nowhere:v1"}, Nodes: "all", Platforms: []string{"linux/arm64"}},
		}},
		{"below", []Rule{{Repository: "team/web/**"}}, []Spec{{Images: []string{"other.example/team/web/x:v1"}}}},
		{"another", []Rule{{Repository: "team"}, {Tag: "v2"}, {Registry: "hub.example"}}, nil},
		{"two rules", []Rule{
			{Tag: "v1", Registry: "hub.*", Nodes: "zone:a"}, {Tag: "v1", Registry: "hub.*", Nodes: "zone:b"}, {Tag: "latest", Nodes: "zone:a"}, {Tag: "lat*", Nodes: "zone:a"},
		}, []Spec{
			{Images: []string{"hub.example:5000/team/app:v1", "hub.example:5000/team/app:latest"}, Nodes: "zone:a"},
			{Images: []string{"hub.example:5000/team/app:v1"}, Nodes: "zone:b"},
		}},
	} {
		if got := Match(test.rules, events); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestRuleValidate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		rule Rule
		want string
	}{
		{Rule{}, ""},
		{Rule{Registry: "hub.*", Repository: "team/**", Tag: "v*", Upstream: "hub.example:5000", Nodes: "25%", Platforms: []string{"linux/arm64"}}, ""},
		{Rule{Registry: "["}, `registry: "[" is not a pattern`},
		{Rule{Repository: "a["}, `repository: "a[" is not a pattern`},
		{Rule{Tag: "v["}, `tag: "v[" is not a pattern`},
		{Rule{Upstream: "https://x"}, "upstream"},
		{Rule{Nodes: "zone"}, "write all"},
		{Rule{Platforms: []string{"a/b/c/d"}}, "platform"},
	} {
		if err := test.rule.Validate(); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.rule, err, test.want)
		}
	}
}

// fuzzEvents checks that what a webhook is read as can be brought.
func fuzzEvents(f *testing.F, parse func([]byte) ([]Event, error)) {
	f.Fuzz(func(t *testing.T, body []byte) {
		events, err := parse(body)
		if err != nil && events != nil {
			t.Error("events and an error")
		}
		for _, s := range Match([]Rule{{}, {Upstream: "up.test", Repository: "**"}}, events) {
			if err := s.Validate("docker.io"); err != nil && len(s.Images) <= maxImages {
				t.Errorf("%+v: %v", s, err)
			}
		}
	})
}

func FuzzParseDistribution(f *testing.F) {
	f.Add([]byte(`{"events":[{"action":"push","target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","repository":"team/app","tag":"v1","digest":"` +
		proto.DigestOf(nil).String() + `"},"request":{"host":"hub.example:5000"}}]}`))
	fuzzEvents(f, ParseDistribution)
}

func FuzzParseHarbor(f *testing.F) {
	for _, file := range []string{"harbor-default.json", "harbor-cloudevents.json"} {
		body, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	fuzzEvents(f, ParseHarbor)
}
