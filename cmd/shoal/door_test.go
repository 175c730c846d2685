package main

import (
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// A mirror is reached over TLS and over a unix socket as over TCP.
func TestDoorAddresses(t *testing.T) {
	t.Parallel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.String()) })
	dir := t.TempDir()
	plain := httptest.NewServer(h)
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(h)
	t.Cleanup(secure.Close)
	ca := filepath.Join(dir, "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(ca, data, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "mirror.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := &httptest.Server{Listener: ln, Config: &http.Server{Handler: h}}
	unix.Start()
	t.Cleanup(unix.Close)

	digest := proto.DigestOf([]byte("x"))
	want := "/v2/library/a/blobs/" + digest.String() + "?ns=docker.io"
	for _, tt := range []struct{ addr, ca, fails string }{
		{plain.Listener.Addr().String(), "", ""},
		{plain.URL, "", ""},
		{"unix:" + socket, "", ""},
		{secure.URL, ca, ""},
		{secure.URL, "", "unknown authority"},
		{"unix:" + socket + ".no", "", "no mirror answers at unix:"},
	} {
		d := newDoor(tt.addr)
		defer d.close()
		if err := d.trust(tt.ca); err != nil {
			t.Fatal(err)
		}
		body, err := d.blob(t.Context(), origin.Ref{Upstream: "docker.io", Repository: "library/a"}, digest, 0)
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s: %v, want it to say %q", tt.addr, err, tt.fails)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.addr, err)
			continue
		}
		got, err := io.ReadAll(body)
		body.Close()
		if string(got) != want || err != nil {
			t.Errorf("%s: %q and %v", tt.addr, got, err)
		}
	}
	for file, want := range map[string]string{dir: "is a directory", socket + ".no": "no such file", os.DevNull: "no certificate"} {
		if err := newDoor("a").trust(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to say %q", file, err, want)
		}
	}
}

// What a command is told about a node by the environment is no setting of one,
// and no setting has such a name.
func TestClientEnvironment(t *testing.T) {
	t.Parallel()
	ks := newSettings().keys
	var environ []string
	for _, name := range clientEnv {
		environ = append(environ, name+"=/some/file")
		if slices.ContainsFunc(ks, func(k key) bool { return k.env() == name }) {
			t.Errorf("%s is a setting too", name)
		}
	}
	if out, errs := fromEnv(environ, ks); len(out) != 0 || errs != nil {
		t.Errorf("%v, %v", out, errs)
	}
}
