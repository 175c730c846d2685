package mirror

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestBadRequests compares what a client is told about each kind of bad input
// with testdata/errors.golden.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	b := newBed(t, options{rules: []policy.Rule{policy.AllowRepositories(upstream, []string{"team/*"})}})
	b.push(t, "team/app", "1", 1000)
	digest := "sha256:" + hex64
	var got bytes.Buffer
	for _, test := range []struct{ method, path, header string }{
		{"GET", "/", ""},
		{"GET", "/v1/", ""},
		{"GET", "/v2/_catalog", ""},
		{"GET", "/v2/team/app", ""},
		{"GET", "/v2/team/app/blobs/uploads/123", ""},
		{"GET", "/v2/manifests/latest", ""},
		{"PUT", "/v2/team/app/manifests/1", ""},
		{"POST", "/v2/team/app/blobs/uploads/", ""},
		{"DELETE", "/v2/team/app/blobs/" + digest, ""},
		{"PATCH", "/", ""},
		{"GET", "/v2/team/app/manifests/1?ns=", ""},
		{"GET", "/v2/team/app/manifests/1?ns=http://registry.test", ""},
		{"GET", "/v2/team/app/manifests/1?ns=registry.test/team", ""},
		{"GET", "/v2/team/app/manifests/1?ns=registry.test:x", ""},
		{"GET", "/v2/team/app/manifests/1?ns=..", ""},
		{"GET", "/v2/team/app/manifests/1?ns=a.test&ns=b.test", ""},
		{"GET", "/v2/team/app/manifests/1?ns=%zz", ""},
		{"GET", "/v2/team/app/manifests/1?ns=other.test", ""},
		{"GET", "/v2/other.test:5000/app/manifests/1", ""},
		{"GET", "/v2/Team/App/manifests/1", ""},
		{"GET", "/v2/team//app/manifests/1", ""},
		{"GET", "/v2/../app/manifests/1", ""},
		{"GET", "/v2/team%2F..%2Fapp/manifests/1", ""},
		{"GET", "/v2/" + strings.Repeat("a", 256) + "/manifests/1", ""},
		{"GET", "/v2/team/app/manifests/-1", ""},
		{"GET", "/v2/team/app/manifests/" + strings.Repeat("a", 129), ""},
		{"GET", "/v2/team/app/manifests/", ""},
		{"GET", "/v2/team/app/manifests/sha256:abc", ""},
		{"GET", "/v2/team/app/manifests/sha384:" + hex64, ""},
		{"GET", "/v2/team/app/blobs/latest", ""},
		{"GET", "/v2/team/app/blobs/" + strings.ToUpper(digest), ""},
		{"GET", "/v2/team/app/blobs/sha256:" + strings.ToUpper(hex64), ""},
		{"GET", "/v2/team/app/blobs/sha512:" + hex64, ""},
		{"GET", "/v2/team/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", ""},
		{"GET", "/v2/team/app/referrers/latest", ""},
		{"GET", "/v2/private/app/manifests/1?ns=" + upstream, ""},
		{"GET", "/v2/private/app/tags/list?ns=" + upstream, ""},
	} {
		var headers []string
		if test.header != "" {
			headers = append(headers, test.header)
		}
		a := b.ask(t, test.method, test.path, headers...)
		fmt.Fprintf(&got, "%s %s\n%d", test.method, test.path, a.status)
		if allow := a.header.Get("Allow"); allow != "" {
			fmt.Fprintf(&got, " Allow: %s", allow)
		}
		fmt.Fprintf(&got, "\n%s\n", a.body)
		if a.header.Get("Content-Type") != "application/json; charset=utf-8" || a.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
			t.Errorf("%s: headers %v", test.path, a.header)
		}
		if test.method == http.MethodGet {
			if head := b.ask(t, http.MethodHead, test.path); head.status != a.status || len(head.body) != 0 {
				t.Errorf("HEAD %s: %d with %d bytes, GET: %d", test.path, head.status, len(head.body), a.status)
			}
		}
	}
	golden := filepath.Join("testdata", "errors.golden")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("what clients are told has changed (go test -update writes %s):\n%s", golden, got.Bytes())
	}
	if n := b.reg.Count(); n.ManifestHeads+n.ManifestGets+n.BlobHeads+n.BlobGets+n.Lists+n.Other != 0 {
		t.Errorf("the origin was asked: %+v", n)
	}
}
