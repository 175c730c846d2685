package signature

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
)

// A fixture is what cosign has put into a repository, as TestMakeFixtures found
// it there.
type fixture struct {
	Manifests []struct {
		Reference string `json:"reference"` // tag or digest
		MediaType string `json:"mediaType"`
		Raw       []byte `json:"raw"`
	} `json:"manifests"`
	Blobs [][]byte `json:"blobs"`
}

// fixtureImage is what the fixtures sign: the same bytes every time.
const (
	fixtureTag  = "1"
	fixtureSeed = 1
)

// TestMakeFixtures makes the files below testdata/cosign with a real cosign:
//
//	SHOAL_COSIGN=$(which cosign) go test -run TestMakeFixtures ./daemon/policy/signature
//
// The keys' private halves are thrown away.
func TestMakeFixtures(t *testing.T) {
	cosign := os.Getenv("SHOAL_COSIGN")
	if cosign == "" {
		t.Skip("set SHOAL_COSIGN to a cosign binary to make the fixtures anew")
	}
	r := registry.New(registry.Options{})
	defer r.Close()
	server := httptest.NewServer(r)
	defer server.Close()
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), cosign, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=", "COSIGN_EXPERIMENTAL=1", "SIGSTORE_NO_CACHE=true")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run("generate-key-pair")
	run("generate-key-pair", "--output-key-prefix", "other")
	write(filepath.Join(dir, "vuln.json"), []byte(cosignVuln("2026-01-02T03:04:05Z", trivyReport("CVE-2026-1", "HIGH"))))
	image := func(repository string) string {
		t.Helper()
		img, err := registry.PushImage(t.Context(), server.URL, repository, fixtureTag, []int64{100}, fixtureSeed)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(server.URL, "http://") + "/" + repository + "@" + img.Manifest.Digest.String()
	}
	common := []string{"--key", "cosign.key", "--tlog-upload=false", "--yes"}
	run(append([]string{"sign", image("tag")}, common...)...)
	run(append([]string{"sign", "--registry-referrers-mode=oci-1-1", image("referrer")}, common...)...)
	run("sign", "--key", "other.key", "--tlog-upload=false", "--yes", image("other"))
	run(append([]string{"attest", "--type", "vuln", "--predicate", "vuln.json", image("attested")}, common...)...)
	for _, repository := range []string{"tag", "referrer", "other", "attested"} {
		data, err := json.MarshalIndent(takeFixture(t, server.URL, repository), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		write("testdata/cosign/"+repository+".json", data)
	}
	for _, name := range []string{"cosign.pub", "other.pub"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		write("testdata/cosign/"+name, data)
	}
	// This version makes bundles for files only; a manifest is one.
	img, err := registry.PushImage(t.Context(), server.URL, "bundle", fixtureTag, []int64{100}, fixtureSeed)
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "manifest.json"), img.Raw)
	write(filepath.Join(dir, "empty.json"), []byte("{}"))
	for name, predicate := range map[string][]string{
		"signed.bundle":  {"empty.json", predicateSignature},
		"scanned.bundle": {"vuln.json", typeCosignVuln},
	} {
		run(append([]string{"attest-blob", "--predicate", predicate[0], "--type", predicate[1], "--new-bundle-format",
			"--bundle", name, "manifest.json"}, common...)...)
	}
	run(append([]string{"sign-blob", "--new-bundle-format", "--bundle", "blob.bundle", "manifest.json"}, common...)...)
	for _, name := range []string{"signed.bundle", "scanned.bundle", "blob.bundle"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		write("testdata/cosign/"+name+".json", data)
	}
}

// takeFixture reads all of a repository but the image.
func takeFixture(t *testing.T, base, repository string) fixture {
	t.Helper()
	get := func(path string) ([]byte, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/v2/"+repository+"/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", path, resp.Status, err)
		}
		return body, resp.Header.Get("Content-Type")
	}
	body, _ := get("tags/list")
	var list struct{ Tags []string }
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	var f fixture
	take := func(reference string) {
		raw, mediaType := get("manifests/" + reference)
		f.Manifests = append(f.Manifests, struct {
			Reference string `json:"reference"`
			MediaType string `json:"mediaType"`
			Raw       []byte `json:"raw"`
		}{reference, mediaType, raw})
	}
	for _, tag := range list.Tags {
		if tag != fixtureTag {
			take(tag)
		}
	}
	for i := 0; i < len(f.Manifests); i++ {
		var m struct {
			Manifests, Layers []descriptor
			Config            *descriptor
		}
		if err := json.NewDecoder(bytes.NewReader(f.Manifests[i].Raw)).Decode(&m); err != nil {
			t.Fatal(err)
		}
		for _, d := range m.Manifests {
			take(d.Digest)
		}
		if m.Config != nil {
			m.Layers = append(m.Layers, *m.Config)
		}
		for _, d := range m.Layers {
			blob, _ := get("blobs/" + d.Digest)
			f.Blobs = append(f.Blobs, blob)
		}
	}
	return f
}
