package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/proto"
)

// A judged is a bed whose Gate has rules that look into content.
type judged struct {
	*bed
	cfg     Config
	metrics *prometheus.Registry

	mu     sync.Mutex // protects the fields below
	signed map[proto.Digest][]string
	silent bool // the registry does not say who has signed
	reads  int
}

func (j *judged) signedBy(_ context.Context, _, _ string, d proto.Digest) ([]string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.silent {
		return nil, fmt.Errorf("referrers: %w", origin.ErrUnavailable)
	}
	return j.signed[d], nil
}

// read fetches a small blob from the registry.
func (j *judged) read(ctx context.Context, from proto.Origin, b proto.Blob) ([]byte, error) {
	j.mu.Lock()
	j.reads++
	j.mu.Unlock()
	var data strings.Builder
	err := j.gate.origin.Source(from).Fetch(ctx, proto.Run{Blob: b, First: 0, Count: b.Chunks()}, &data)
	return []byte(data.String()), err
}

func newJudged(t *testing.T, c rules.Config, change ...func(*judged, *Config)) *judged {
	t.Helper()
	j := &judged{bed: newBed(t), signed: make(map[proto.Digest][]string), metrics: prometheus.NewRegistry()}
	set, err := rules.Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	j.cfg = Config{
		Origin: j.gate.origin, Index: j.index, Rules: set, AuditOnly: c.Mode == "audit",
		SignedBy: j.signedBy, Read: j.read, Registry: j.metrics, Upstreams: []string{upstream},
	}
	for _, f := range change {
		f(j, &j.cfg)
	}
	j.gate = New(j.cfg)
	return j
}

var ann = Caller{Door: DoorMirror, Addr: "192.0.2.1", User: "ann"}

// pull asks for an image as a runtime does, and returns the first error.
func (j *judged) pull(t *testing.T, repository, tag string, img registry.Image) (Ruling, error) {
	t.Helper()
	ref := tagRef(repository, tag)
	a, err := j.gate.Admit(t.Context(), ref, ann)
	if err != nil {
		return Ruling{}, err
	}
	r, err := j.gate.Judge(t.Context(), ref, ann, a.Descriptor, img.Raw)
	if err != nil {
		return Ruling{}, err
	}
	r = a.And(r)
	if _, err := j.gate.Learn(upstream, repository, img.Raw, a.MediaType); err != nil {
		t.Fatal(err)
	}
	for _, b := range img.Blobs() {
		if _, err := j.gate.Admit(t.Context(), blobRef(repository, b.Digest), ann); err != nil {
			return r, err
		}
	}
	return r, nil
}

func denial(err error) string {
	if d := (*Denial)(nil); errors.As(err, &d) {
		return d.Rule
	}
	return fmt.Sprint(err)
}

func deny(name, condition string) rules.Config {
	return rules.Config{Rules: []rules.Rule{{Name: name, If: condition, Do: "deny"}}}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		rules rules.Config
		want  string // the rule that denies
	}{
		"nothing":             {rules.Config{}, "<nil>"},
		"by the tag":          {rules.Config{NoLatest: true}, "<nil>"},
		"another platform":    {deny("arch", `platform.startsWith("windows/")`), "<nil>"},
		"the platform":        {deny("arch", `platform == ""`), "arch"},
		"media type":          {deny("type", `mediaType.contains("manifest")`), "type"},
		"not signed":          {deny("sig", `!("release" in signedBy)`), "sig"},
		"who asks":            {deny("who", `client.user == "ann"`), "who"},
		"default":             {rules.Config{Default: "deny"}, "default"},
		"allowed by a key":    {rules.Config{Default: "deny", Rules: []rules.Rule{{Name: "sig", If: `"other" in signedBy`, Do: "allow"}}}, "<nil>"},
		"blobs have no tag":   {rules.Config{Default: "deny", Rules: []rules.Rule{{Name: "v", If: `tag == "1" || tag == "" && mediaType != ""`, Do: "allow"}}}, "<nil>"},
		"only another's user": {deny("who", `client.user == "bob" && mediaType != ""`), "<nil>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := newJudged(t, test.rules)
			img := j.push(t, "team/app", "1", 1000)
			j.signed[img.Manifest.Digest] = []string{"other"}
			_, err := j.pull(t, "team/app", "1", img)
			if got := denial(err); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
			if err != nil && !errors.Is(err, ErrDenied) {
				t.Errorf("%v is not ErrDenied", err)
			}
			if n := j.reg.Count(); err != nil && n.BlobBytes > img.Config.Size {
				t.Errorf("%+v of a denied image was fetched", n)
			}
		})
	}
}

// Where rules look into content, a blob is let through as part of an image that
// was, and only to who it was let through to.
func TestBlobsNeedAnImage(t *testing.T) {
	t.Parallel()
	j := newJudged(t, deny("sig", `!("release" in signedBy)`))
	good := j.push(t, "team/app", "1", 1000)
	bad := j.push(t, "team/app", "2", 2000)
	j.signed[good.Manifest.Digest] = []string{"release"}
	admit := func(img registry.Image, want string) {
		t.Helper()
		for _, b := range img.Blobs() {
			_, err := j.gate.Admit(t.Context(), blobRef("team/app", b.Digest), ann)
			if got := denial(err); got != want {
				t.Errorf("blob: %s, want %s", got, want)
			}
		}
	}
	admit(good, ruleContent) // nobody has seen its manifest yet
	for _, img := range []registry.Image{good, bad} {
		_, err := j.pull(t, "team/app", img.Tag, img)
		if (err == nil) != (img.Tag == "1") {
			t.Errorf("image %s: %v", img.Tag, err)
		}
	}
	admit(good, "<nil>")
	admit(bad, ruleContent)
	// The manifest is known, as after a restart with a new rule: it is judged
	// again, and not just taken for good.
	if _, err := j.gate.Learn(upstream, "team/app", bad.Raw, bad.MediaType); err != nil {
		t.Fatal(err)
	}
	j.cfg.Registry = nil // it has the metrics already
	j.gate = New(j.cfg)
	admit(bad, "sig")
	admit(good, "<nil>")
	j.gate = New(j.cfg)
	j.silent = true
	for _, b := range good.Blobs() {
		if _, err := j.gate.Admit(t.Context(), blobRef("team/app", b.Digest), ann); !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("nobody can say who signed it: %v, want ErrUnavailable", err)
		}
	}
}

// What one client may have another one need not.
func TestJudgedForOneClient(t *testing.T) {
	t.Parallel()
	j := newJudged(t, deny("who", `client.user != "ann" && kind == "manifest" && mediaType != ""`))
	img := j.push(t, "team/app", "1", 1000)
	if _, err := j.pull(t, "team/app", "1", img); err != nil {
		t.Fatal(err)
	}
	bob := ann
	bob.User = "bob"
	if _, err := j.gate.Admit(t.Context(), blobRef("team/app", img.Layers[0].Digest), bob); denial(err) != "who" {
		t.Errorf("%v, want a denial", err)
	}
	if _, err := j.gate.Admit(t.Context(), blobRef("team/app", img.Layers[0].Digest), ann); err != nil {
		t.Error(err)
	}
}

// An image counts as signed if an index of its repository is that has it, and
// not one of another.
func TestSignedIndex(t *testing.T) {
	t.Parallel()
	j := newJudged(t, deny("sig", `!("release" in signedBy)`))
	img := j.push(t, "team/app", "1", 1000)
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		typeOCIIndex, img.MediaType, img.Manifest.Digest, img.Manifest.Size)
	d := proto.DigestOf(index)
	for _, repository := range []string{"team/app", "evil/app"} {
		if repository == "evil/app" {
			j.push(t, repository, "1", 1000)
		}
		if err := registry.PushManifest(t.Context(), j.url, repository, "multi", typeOCIIndex, index); err != nil {
			t.Fatal(err)
		}
	}
	j.signed[d] = []string{"release"}
	ref := tagRef("team/app", "")
	ref.Digest = img.Manifest.Digest
	admit := func() error {
		a, err := j.gate.Admit(t.Context(), ref, ann)
		if err == nil {
			_, err = j.gate.Judge(t.Context(), ref, ann, a.Descriptor, img.Raw)
		}
		return err
	}
	see := func(repository string) {
		t.Helper()
		ref := tagRef(repository, "multi")
		a, err := j.gate.Admit(t.Context(), ref, ann)
		if err == nil {
			_, err = j.gate.Judge(t.Context(), ref, ann, a.Descriptor, index)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := j.gate.Learn(upstream, repository, index, a.MediaType); err != nil {
			t.Fatal(err)
		}
	}
	see("evil/app")
	if err := admit(); denial(err) != "sig" {
		t.Errorf("signed by an index of another repository: %v", err)
	}
	see("team/app")
	if err := admit(); err != nil {
		t.Errorf("its own index is signed: %v", err)
	}
}

// All keys that are required have to have signed, and an origin that does not
// say is no verdict.
func TestRequiredAndScan(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		signed   []string
		required []string
		silent   bool
		scan     error
		want     string
	}{
		"none required":  {want: "<nil>"},
		"signed":         {signed: []string{"a", "b"}, required: []string{"a", "b"}, want: "<nil>"},
		"one is missing": {signed: []string{"a"}, required: []string{"a", "b"}, want: ruleSignature},
		"another key":    {signed: []string{"c"}, required: []string{"a"}, want: ruleSignature},
		"not signed":     {required: []string{"a"}, want: ruleSignature},
		"silent":         {required: []string{"a"}, silent: true, want: "referrers: unavailable"},
		"scan":           {scan: &Denial{Rule: "vulnerable", Message: "CVE"}, want: "vulnerable"},
		"scan not known": {scan: origin.ErrUnavailable, want: "unavailable"},
	} {
		for _, mode := range []string{"enforce", "audit"} {
			t.Run(name+", "+mode, func(t *testing.T) {
				t.Parallel()
				j := newJudged(t, rules.Config{Mode: mode}, func(_ *judged, c *Config) {
					c.Required = func(_, repository string) []string {
						if repository == "team/app" {
							return test.required
						}
						return nil
					}
					if test.scan != nil {
						c.Scan = func(context.Context, string, string, proto.Digest) error { return test.scan }
					}
				})
				img := j.push(t, "team/app", "1", 1000)
				j.signed[img.Manifest.Digest], j.silent = test.signed, test.silent
				r, err := j.pull(t, "team/app", "1", img)
				if mode == "enforce" {
					if got := denial(err); got != test.want {
						t.Errorf("%s, want %s", got, test.want)
					}
					return
				}
				if err != nil {
					t.Errorf("in mode audit: %v", err)
				}
				if (r.Would != nil) != (test.want != "<nil>") {
					t.Errorf("in mode audit: %+v", r.Would)
				}
				if r.Would != nil && !r.Would.Audit {
					t.Error("what was only noted does not say so")
				}
			})
		}
	}
}

// Modes of the rules themselves, and the counter of unsigned pulls.
func TestAuditAndUnsigned(t *testing.T) {
	t.Parallel()
	c := deny("sig", `!("release" in signedBy)`)
	c.Mode = "audit"
	j := newJudged(t, c)
	img := j.push(t, "team/app", "1", 1000)
	r, err := j.pull(t, "team/app", "1", img)
	if err != nil || r.Would == nil || r.Would.Rule != "sig" || !r.Unsigned {
		t.Fatalf("%+v, %v", r, err)
	}
	j.gate.Served(tagRef("team/app", "1"), r)
	j.gate.Served(tagRef("team/app", "1"), Ruling{})
	want := `# HELP shoal_policy_unsigned_pulls_total Manifests that were served although signatures were looked for and none was good.
# TYPE shoal_policy_unsigned_pulls_total counter
shoal_policy_unsigned_pulls_total{upstream="registry.test"} 1
`
	if err := testutil.GatherAndCompare(j.metrics, strings.NewReader(want), "shoal_policy_unsigned_pulls_total"); err != nil {
		t.Error(err)
	}
}

// A digest that is blocked is refused at once, by tag and by digest, manifest
// and blob, whoever asks and whatever mode the policy is in.
func TestBlocked(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	blocked := map[proto.Digest]bool{}
	j := newJudged(t, rules.Config{Mode: "audit"}, func(_ *judged, c *Config) {
		c.Blocked = func(d proto.Digest) (string, bool) {
			mu.Lock()
			defer mu.Unlock()
			return "recalled", blocked[d]
		}
	})
	img := j.push(t, "team/app", "1", 1000)
	if _, err := j.pull(t, "team/app", "1", img); err != nil {
		t.Fatal(err)
	}
	for _, d := range []proto.Digest{img.Manifest.Digest, img.Layers[0].Digest} {
		mu.Lock()
		blocked[d] = true
		mu.Unlock()
		if _, err := j.gate.Admit(t.Context(), tagRef("team/app", "1"), ann); (err != nil) != (d == img.Manifest.Digest) {
			t.Errorf("the tag of what is blocked: %v", err) // all that a HEAD asks
		}
		_, err := j.pull(t, "team/app", "1", img)
		if denial(err) != ruleBlocklist || !strings.Contains(err.Error(), "recalled") {
			t.Errorf("%v, want a denial with its reason", err)
		}
		mu.Lock()
		clear(blocked)
		mu.Unlock()
	}
	if _, err := j.pull(t, "team/app", "1", img); err != nil {
		t.Errorf("unblocked again: %v", err)
	}
}

// Nothing is fetched, and no time lost, where nothing looks into content.
func TestJudgeIsFree(t *testing.T) {
	t.Parallel()
	j := newJudged(t, rules.Config{NoLatest: true})
	img := j.push(t, "team/app", "1", 1000)
	if j.gate.NeedsContent(tagRef("team/app", "1")) {
		t.Error("a rule about tags needs content")
	}
	if _, err := j.pull(t, "team/app", "1", img); err != nil {
		t.Fatal(err)
	}
	if j.reads != 0 {
		t.Errorf("%d blobs were read", j.reads)
	}
	_, err := j.gate.Admit(t.Context(), tagRef("team/app", "latest"), ann)
	if !errors.Is(err, ErrDenied) {
		t.Errorf("latest: %v", err)
	}
	if err := j.gate.Check(t.Context(), origin.Ref{Upstream: upstream, Repository: "team/app", Manifest: true}, ann); err != nil {
		t.Errorf("a list: %v", err)
	}
}

// What rules see of an image.
func TestDescribeImage(t *testing.T) {
	t.Parallel()
	j := newJudged(t, rules.Config{})
	push := func(content string) string {
		if err := registry.PushBlob(t.Context(), j.url, "team/app", []byte(content)); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`"digest":%q,"size":%d`, proto.DigestOf([]byte(content)), len(content))
	}
	config := push(`{"os":"linux","architecture":"arm","variant":"v7","created":"2020-01-02T03:04:05Z"}`)
	empty := push(`{}`)
	broken := push(`[]`)
	old := time.Since(time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC))
	ref := blobRef("team/app", proto.DigestOf([]byte("x")))
	for name, test := range map[string]struct {
		manifest, mediaType string
		platform            string
		age                 time.Duration // -1: not known
		err                 error
	}{
		"image":               {`{"config":{"mediaType":"` + typeOCIConfig + `",` + config + `}}`, typeOCIManifest, "linux/arm/v7", old, nil},
		"docker's":            {`{"config":{"mediaType":"` + typeDockerConfig + `",` + config + `}}`, typeDockerManifest, "linux/arm/v7", old, nil},
		"no image":            {`{"config":{"mediaType":"a/b",` + config + `}}`, typeOCIManifest, "", -1, nil},
		"says nothing":        {`{"config":{"mediaType":"` + typeOCIConfig + `",` + empty + `}}`, typeOCIManifest, "", -1, nil},
		"by annotation":       {`{"annotations":{"` + annotationCreated + `":"2020-01-02T03:04:05Z"},"config":{"mediaType":"` + typeOCIConfig + `",` + empty + `}}`, typeOCIManifest, "", old, nil},
		"index":               {`{"annotations":{"` + annotationCreated + `":"2020-01-02T03:04:05Z"},"manifests":[]}`, typeOCIIndex, "", old, nil},
		"in time to come":     {`{"annotations":{"` + annotationCreated + `":"2999-01-02T03:04:05Z"}}`, typeOCIIndex, "", 0, nil},
		"no JSON":             {`hello`, typeOCIManifest, "", -1, origin.ErrProtocol},
		"broken config":       {`{"config":{"mediaType":"` + typeOCIConfig + `",` + broken + `}}`, typeOCIManifest, "", -1, origin.ErrProtocol},
		"config without size": {`{"config":{"mediaType":"` + typeOCIConfig + `","digest":"` + ref.Digest.String() + `"}}`, typeOCIManifest, "", -1, origin.ErrProtocol},
		"huge config":         {`{"config":{"mediaType":"` + typeOCIConfig + `","digest":"` + ref.Digest.String() + `","size":9999999999}}`, typeOCIManifest, "", -1, origin.ErrTooLarge},
		"config is not there": {`{"config":{"mediaType":"` + typeOCIConfig + `","digest":"` + ref.Digest.String() + `","size":2}}`, typeOCIManifest, "", -1, origin.ErrNotFound},
	} {
		var f rules.Facts
		err := j.gate.describeImage(t.Context(), ref, origin.Descriptor{MediaType: test.mediaType}, []byte(test.manifest), &f)
		if !errors.Is(err, test.err) || err != nil && test.err == nil {
			t.Errorf("%s: %v, want %v", name, err, test.err)
			continue
		}
		if late := f.Age - test.age; err == nil && (f.Platform != test.platform || late < 0 || late > time.Minute || !f.HasContent) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// What Import links is what was imported, whatever is known of it elsewhere.
func TestImportLinksAll(t *testing.T) {
	t.Parallel()
	g, img := newGuarded(t)
	g.pulled(t, img, g.good(time.Minute, private))
	if _, err := g.gate.Import(secret, other, img.Raw, img.MediaType); err != nil {
		t.Fatal(err)
	}
	for _, b := range img.Blobs() {
		link, ok, err := g.index.Link(secret, other, b.Digest)
		if !ok || err != nil || link != (cache.Link{Size: b.Size, MediaType: link.MediaType}) {
			t.Errorf("%+v, %v, %v", link, ok, err)
		}
	}
	if parts, err := g.index.PartOf(secret, private, img.Layers[0].Digest); err != nil || !slices.Equal(parts, []proto.Digest{img.Manifest.Digest}) {
		t.Errorf("part of %v, %v", parts, err)
	}
}
