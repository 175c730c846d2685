package locks_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon"
)

// A spy hears all that is written.
type spy struct {
	mu   sync.Mutex
	text bytes.Buffer // mu protects it
}

func (s *spy) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// hears adds what came from somewhere.
func (s *spy) hears(from string, p []byte) { fmt.Fprintf(s, "\n=== %s\n%s\n", from, p) }

// planted are secrets by what they are for. Each is looked for as it is and in
// the forms that programs give it.
type planted map[string]string

// find returns which secrets are in text, and where.
func (p planted) find(text []byte) []string {
	var found []string
	for what, secret := range p {
		for form, s := range map[string]string{
			"as it is": secret, "in base64": base64.StdEncoding.EncodeToString([]byte(secret)),
			"in hex": hex.EncodeToString([]byte(secret)), "in a URL": url.QueryEscape(secret),
		} {
			if i := bytes.Index(text, []byte(s)); i >= 0 {
				found = append(found, fmt.Sprintf("%s %s: …%s…", what, form, text[max(0, i-200):min(len(text), i+len(s)+60)]))
			}
		}
	}
	return found
}

// TestSecretsStayInside: none of the secrets that a node is given, by files,
// helpers or callers, is in its logs, answers, metrics, API or files, whatever
// goes wrong.
func TestSecretsStayInside(t *testing.T) {
	secrets := planted{
		"password of the node": passwords["root"], "password of a helper": passwords["ann"], "password of a caller": passwords["bob"],
		"wrong password of the node": "a wrong pass word", "cluster secret": "the secret of a test fleet",
		"admin token": "the admin token of this test", "webhook token": "the webhook token of this test",
		"token of nobody": "a-token-that-nobody-gave-" + strings.Repeat("x", 40), "what a broken helper says": "the pass word in an error of a helper",
	}
	for _, user := range []string{"root", "ann", "bob"} {
		secrets["login of "+user] = strings.TrimPrefix(basic(user, passwords[user]), "Basic ")
	}
	heard := &spy{}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"password": secrets["password of the node"], "wrong": secrets["wrong password of the node"],
		"admin": secrets["admin token"], "webhook": secrets["webhook token"],
	} {
		write(t, filepath.Join(dir, name), content)
	}
	b := startWith(t, registry.AuthToken, daemon.Upstream{Auth: "passthrough", Basic: true}, heard, fleet.Options{Nodes: 2, Configure: func(i int, c *daemon.Config) {
		node := c.Upstreams[fleet.Upstream]
		node.Auth, node.Basic, node.Username, node.PasswordFile, node.Allow = "node", false, "root", filepath.Join(dir, "password"), []string{secretRepo}
		wrong := node
		wrong.PasswordFile = filepath.Join(dir, "wrong")
		stored := func(name, config string) daemon.Upstream {
			u := node
			u.Username, u.PasswordFile, u.CredentialsFile = "", "", filepath.Join(dir, name)
			write(t, u.CredentialsFile, config)
			return u
		}
		host := strings.TrimPrefix(node.URL, "http://")
		login := base64.StdEncoding.EncodeToString([]byte("root:" + passwords["root"]))
		c.Upstreams["node.test"], c.Upstreams["wrong.test"] = node, wrong
		c.Upstreams["helper.test"] = stored("helper.json", fmt.Sprintf(`{"credHelpers": {%q: "planted"}}`, host))
		c.Upstreams["broken.test"] = stored("broken.json", fmt.Sprintf(`{"credHelpers": {%q: "broken"}}`, host))
		c.Upstreams["file.test"] = stored("file.json", fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, login))
		c.Upstreams["garbled.test"] = stored("garbled.json", `{}`)
		c.Admin.Tokens = []daemon.AdminToken{{Name: "test", Role: "admin", File: filepath.Join(dir, "admin")}}
		c.Webhook.TokenFile = filepath.Join(dir, "webhook")
		c.Audit.File = filepath.Join(c.Data+"-audit", "audit.log")
	}})
	write(t, filepath.Join(dir, "garbled.json"), fmt.Sprintf(`{"auths": {%q: {"auth": %q, }`, b.url, basic("root", passwords["root"])))
	plantHelper(t, dir, "planted", fmt.Sprintf(`echo '{"ServerURL":"","Username":"ann","Secret":"%s"}'; echo '%[1]s' >&2`, passwords["ann"]))
	plantHelper(t, dir, "broken", fmt.Sprintf(`echo '%s'; echo '%[1]s' >&2; exit 1`, secrets["what a broken helper says"]))
	img := b.push(secretRepo)
	good := b.as("ann", secretRepo)
	secrets["token of ann"] = strings.TrimPrefix(good, "Bearer ")
	expired := "Bearer " + b.Token("ann", -time.Minute, secretRepo)
	secrets["expired token"] = strings.TrimPrefix(expired, "Bearer ")

	// The secrets are in use, or it would be no wonder that nobody hears them.
	manifest := secretRepo + "/manifests/" + img.Tag
	for ns, want := range map[string]int{"node.test": 200, "helper.test": 200, "file.test": 200, "wrong.test": 403, "broken.test": 403, "garbled.test": 403} {
		if a := b.ask(0, "GET", manifest+"?ns="+ns, ""); a.status != want {
			t.Errorf("%s: status %d, want %d: %.300s", ns, a.status, want, a.body)
		}
	}
	if a := b.ask(0, "GET", manifest, good); a.status != http.StatusOK {
		t.Errorf("status %d: %.300s", a.status, a.body)
	}

	everything := func() {
		var asking sync.WaitGroup
		for _, ns := range []string{fleet.Upstream, "node.test", "wrong.test", "helper.test", "broken.test", "file.test", "garbled.test", "nowhere.test"} {
			for _, path := range []string{"", manifest, secretRepo + "/blobs/" + img.Layers[0].Digest.String(),
				otherRepo + "/manifests/none", secretRepo + "/tags/list", secretRepo + "/referrers/" + img.Manifest.Digest.String(), "a//b/manifests/x"} {
				for _, authorization := range []string{"", good, expired, "Bearer " + secrets["token of nobody"], basic("bob", passwords["bob"]), "Nonsense " + secrets["token of nobody"]} {
					asking.Go(func() { heard.hears("GET "+path, b.raw(ns, path, authorization)) })
				}
			}
		}
		asking.Wait()
		for _, path := range []string{"/metrics", "/healthz", "/readyz", "/v1/status", "/v1/members", "/v1/pulls", "/v1/jobs", "/v1/cache", "/v1/cache/pins", "/v1/offline", "/v1/checks", "/v1/blocklist", "/debug/pprof/goroutine?debug=2"} {
			for _, token := range []string{"", secrets["admin token"], secrets["token of nobody"]} {
				heard.hears(path, b.admin(path, token))
			}
		}
	}
	everything()
	b.hearsCommands(heard, dir)
	b.SetFaults(registry.Faults{Down: true})
	everything()
	b.SetFaults(registry.Faults{ManifestStatus: 401, Status: 403, ListStatus: 500})
	everything()
	for _, n := range b.fleet.Nodes {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
		b.hearsFiles(heard, n.Config.Data)
		b.hearsFiles(heard, n.Config.Data+"-audit")
		heard.hears("configuration", fmt.Appendf(nil, "%+v", n.Config))
	}
	for _, found := range secrets.find(heard.text.Bytes()) {
		t.Error(found)
	}
	said := []string{"shoal is up", "Www-Authenticate: Bearer realm", `"door":"mirror"`, "helper.test", "shoal_first_byte_seconds", "docker-credential-broken"}
	if !testing.Short() {
		said = append(said, "=== shoal doctor", "=== shoal status")
	}
	for _, one := range said {
		if !bytes.Contains(heard.text.Bytes(), []byte(one)) {
			t.Errorf("heard nothing of %q in %d bytes: was all asked?", one, heard.text.Len())
		}
	}
}

// hearsCommands adds what the commands of the binary say of node 0 and its
// configuration.
func (b *bed) hearsCommands(heard *spy, dir string) {
	b.t.Helper()
	if testing.Short() {
		return // building it takes seconds
	}
	binary, err := process.Shoal(b.t.TempDir())
	if err != nil {
		b.t.Fatal(err)
	}
	n := b.fleet.Nodes[0]
	config := filepath.Join(dir, "node.yaml")
	write(b.t, config, fmt.Sprintf(`
data: %s
mirror: {listen: %q, default: node.test}
admin: {listen: %q, tokens: [{name: test, role: admin, file: %[4]s/admin}]}
gossip: {secretFile: %[5]q}
webhook: {tokenFile: %[4]s/webhook}
upstreams:
  node.test: {url: %[6]q, auth: node, username: root, passwordFile: %[4]s/password, allow: [%[7]s]}
  helper.test: {url: %[6]q, auth: node, credentialsFile: %[4]s/helper.json, allow: [%[7]s]}
  garbled.test: {url: %[6]q, auth: node, credentialsFile: %[4]s/garbled.json, allow: [%[7]s]}
`, n.Config.Data, n.MirrorAddr(), n.AdminAddr(), dir, n.Config.Gossip.SecretFile, b.url, secretRepo))
	ask := []string{"--admin", n.AdminAddr(), "--admin-token-file", filepath.Join(dir, "admin")}
	for _, args := range [][]string{
		{"config", "--config", config},
		{"config", "--check", "--config", config},
		{"config", "--config", config, "--gossip.secretFile", filepath.Join(dir, "none")},
		append([]string{"status"}, ask...),
		append([]string{"doctor", "--json", "--config", config}, ask...),
		append([]string{"doctor", "--config", config}, ask...),
		append([]string{"blocked"}, ask...),
		append([]string{"jobs"}, ask...),
	} {
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
		out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput() // some of them fail, and say why
		cancel()
		heard.hears("shoal "+strings.Join(args, " "), fmt.Appendf(out, "\n%v", err))
	}
}

// plantHelper puts a credential helper into PATH, of which script is a part.
func plantHelper(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\ncat >/dev/null\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// raw returns all of an answer of node 0's mirror.
func (b *bed) raw(ns, path, authorization string) []byte {
	req, err := http.NewRequestWithContext(b.t.Context(), "GET", b.fleet.Nodes[0].MirrorURL()+"/v2/"+path+"?ns="+ns, nil)
	if err != nil {
		b.t.Error(err)
		return nil
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return b.dump(req)
}

// admin returns all of an answer of node 0's admin door.
func (b *bed) admin(path, token string) []byte {
	req, err := http.NewRequestWithContext(b.t.Context(), "GET", "http://"+b.fleet.Nodes[0].AdminAddr()+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return b.dump(req)
}

func (b *bed) dump(req *http.Request) []byte {
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Error(err)
		return nil
	}
	defer resp.Body.Close()
	var out bytes.Buffer
	fmt.Fprintln(&out, resp.Status)
	_ = resp.Header.Write(&out)
	if _, err := io.Copy(&out, resp.Body); err != nil {
		fmt.Fprintln(&out, err)
	}
	return out.Bytes()
}

// hearsFiles adds all that a node has written below dir, but for its identity.
func (b *bed) hearsFiles(heard *spy, dir string) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || e.Name() == "identity.key" {
			return err
		}
		data, err := os.ReadFile(path)
		heard.hears(path, data)
		return err
	})
	if err != nil {
		b.t.Error(err)
	}
}
