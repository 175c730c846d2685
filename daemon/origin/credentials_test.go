package origin_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// helperScript is a credential helper. It writes down that it was asked, and for
// what, and does what a file of the server's name says.
const helperScript = `#!/bin/sh
read -r server
echo "$1 $server" >> "$HELPER_DIR/asked"
. "$HELPER_DIR/answer"
`

// newHelper puts docker-credential-test into PATH. answer is a shell script.
func newHelper(t *testing.T, answer string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, "docker-credential-test"), helperScript, 0o700)
	write(t, filepath.Join(dir, "answer"), answer, 0o600)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("HELPER_DIR", dir)
	return dir
}

func write(t *testing.T, file, content string, mode os.FileMode) {
	t.Helper()
	// By a rename, as careful programs do it.
	if err := os.WriteFile(file+".new", []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// asked returns how often the helper was.
func asked(t *testing.T, dir string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

func withFile(url, file string) origin.Upstream {
	u := at(url)
	u.Auth, u.CredentialsFile = origin.AuthNode, file
	return u
}

func TestCredentialHelper(t *testing.T) { // no parallel: it changes PATH
	r, url := startRegistry(t, registry.Options{Login: registry.AuthBasic, Users: map[string]string{"ann": "s3cret"}})
	content, b := pushAs(t, url, "ann:s3cret")
	host := strings.TrimPrefix(url, "http://")
	good := `echo '{"ServerURL":"` + host + `","Username":"ann","Secret":"s3cret"}'`
	own := fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, host)
	pair := base64.StdEncoding.EncodeToString([]byte("ann:s3cret"))
	for name, tc := range map[string]struct {
		config, answer string
		err            string // empty: the blob
		asked          int
	}{
		"helper of the host": {own, good, "", 1},
		"store":              {`{"credsStore": "test"}`, good, "", 1},
		"store, entry there": {fmt.Sprintf(`{"credsStore": "test", "auths": {%q: {}}}`, host), good, "", 1},
		"environment":        {own, `[ -n "$HELPER_DIR" ] && ` + good, "", 1},
		"secret in the file": {fmt.Sprintf(`{"credsStore": "test", "auths": {%q: {"auth": %q}}}`, host, pair), "exit 1", "", 0},
		"helper has none, the file has": {fmt.Sprintf(`{"credHelpers": {%q: "test"}, "auths": {%[1]q: {"auth": %q}}}`, host, pair),
			"echo credentials not found in native keychain; exit 1", "", 1},
		"turned off for the host": {fmt.Sprintf(`{"credsStore": "test", "credHelpers": {%q: ""}}`, host), good, "has none for " + host, 0},
		"has none":                {own, "echo credentials not found in native keychain; exit 1", "has none for " + host, 1},
		"of another host":         {`{"credHelpers": {"elsewhere.test": "test"}}`, good, "has none for " + host, 0},
		"wrong password":          {own, `echo '{"Username":"ann","Secret":"hunter2"}'`, "does not give access", 1},
		"fails":                   {own, "echo hunter2; echo hunter2 >&2; exit 3", "credential helper docker-credential-test for " + host + ": it failed", 1},
		"no JSON":                 {own, "echo hunter2", "docker-credential-test for " + host + ": an answer that is not JSON", 1},
		"too long":                {own, "yes hunter2", "docker-credential-test for " + host + ": its answer has more than", 1},
		"not there":               {fmt.Sprintf(`{"credHelpers": {%q: "nowhere"}}`, host), good, "docker-credential-nowhere for " + host + ": not found in PATH", 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newHelper(t, tc.answer)
			file := filepath.Join(t.TempDir(), "config.json")
			write(t, file, tc.config, 0o600)
			var log bytes.Buffer
			c := newClient(t, withFile(url, file), func(cfg *origin.Config) {
				cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			got, err := fetch(t, c, b.Run())
			if tc.err == "" && (err != nil || !bytes.Equal(got, content)) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if tc.err != "" && (!errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), tc.err) || len(got) != 0) {
				t.Errorf("%d bytes, %v; want ErrDenied with %q", len(got), err, tc.err)
			}
			if n := asked(t, dir); n != tc.asked {
				t.Errorf("the helper was asked %d times, want %d", n, tc.asked)
			}
			if text := fmt.Sprint(err, log.String()); strings.Contains(text, "hunter2") || strings.Contains(text, "s3cret") {
				t.Errorf("its output is in %s", text)
			}
		})
	}

	t.Run("many at once", func(t *testing.T) {
		dir := newHelper(t, good)
		file := filepath.Join(t.TempDir(), "config.json")
		write(t, file, own, 0o600)
		c := newClient(t, withFile(url, file))
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if _, err := fetch(t, c, b.Run()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		r.RemoveUser("ann")
		if _, err := fetch(t, c, b.Run()); !errors.Is(err, origin.ErrDenied) {
			t.Errorf("%v, want ErrDenied", err)
		}
		if n := asked(t, dir); n != 1 {
			t.Errorf("the helper was asked %d times within a minute, want once", n)
		}
	})

	// Whoever gives up does not wait for the helper, nor for what it started.
	t.Run("hangs", func(t *testing.T) {
		dir := newHelper(t, "sleep 300 & wait")
		file := filepath.Join(t.TempDir(), "config.json")
		write(t, file, own, 0o600)
		c := newClient(t, withFile(url, file))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			for ctx.Err() == nil { // until it runs
				if _, err := os.Stat(filepath.Join(dir, "asked")); err == nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		err := c.Source(blobOrigin).Fetch(ctx, b.Run(), new(bytes.Buffer))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want the context's error", err)
		}
	})
}

// A helper's "<token>" is exchanged as an identity token is.
func TestCredentialHelperToken(t *testing.T) {
	newHelper(t, `echo '{"Username":"<token>","Secret":"refresh-me"}'`)
	content, b, url := identityRegistry(t)
	file := filepath.Join(t.TempDir(), "config.json")
	write(t, file, `{"credsStore": "test"}`, 0o600)
	got, err := fetch(t, newClient(t, withFile(url, file)), b.Run())
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// pushAs pushes a blob with a login and returns it.
func pushAs(t *testing.T, url, login string) ([]byte, proto.Blob) {
	t.Helper()
	return push(t, strings.Replace(url, "http://", "http://"+login+"@", 1), 1, 1000)
}

// A mounted Kubernetes secret is a directory whose files are swapped by a
// symbolic link.
func TestKubernetesSecret(t *testing.T) {
	t.Parallel()
	for _, name := range []string{".dockerconfigjson", "config.json", ".dockercfg"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, url := startRegistry(t, registry.Options{Login: registry.AuthBasic, Users: map[string]string{"ann": "1", "bob": "2"}})
			content, b := pushAs(t, url, "ann:1")
			host := strings.TrimPrefix(url, "http://")
			dir := t.TempDir()
			mount := func(version, user, password string) {
				data := filepath.Join(dir, "..version-"+version)
				if err := os.Mkdir(data, 0o700); err != nil {
					t.Fatal(err)
				}
				auths := fmt.Sprintf(`{%q: {"username": %q, "password": %q}}`, host, user, password)
				if name != ".dockercfg" {
					auths = `{"auths": ` + auths + `}`
				}
				write(t, filepath.Join(data, name), auths, 0o600)
				if err := os.Symlink("..version-"+version, filepath.Join(dir, "..data_tmp")); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
					t.Fatal(err)
				}
			}
			mount("1", "ann", "1")
			if err := os.Symlink("..data/"+name, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			c := newClient(t, withFile(url, dir))
			for range 2 {
				if got, err := fetch(t, c, b.Run()); err != nil || !bytes.Equal(got, content) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
			}
			// The old login would still do, but is not to be used any more.
			mount("2", "bob", "wrong")
			if _, err := fetch(t, c, b.Run()); !errors.Is(err, origin.ErrDenied) {
				t.Errorf("with the new secret: %v, want ErrDenied", err)
			}
			mount("3", "bob", "2")
			r.RemoveUser("ann")
			if got, err := fetch(t, c, b.Run()); err != nil || !bytes.Equal(got, content) {
				t.Errorf("with the third secret: %d bytes, %v", len(got), err)
			}
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if _, err := fetch(t, c, b.Run()); !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("without the secret: %v, want ErrDenied", err)
			}
		})
	}
}

// The password is read anew at each login, and one that has changed ends what was
// reached with the old one.
func TestPasswordFile(t *testing.T) {
	t.Parallel()
	for _, auth := range []registry.Auth{registry.AuthBasic, registry.AuthToken} {
		r, url := startRegistry(t, registry.Options{
			Login: auth, Users: map[string]string{"ann": "s3cret"}, Private: []string{repository},
		})
		content, b := pushAs(t, url, "ann:s3cret")
		file := filepath.Join(t.TempDir(), "password")
		write(t, file, "s3cret\n", 0o600)
		u := at(url)
		u.Auth, u.Username, u.PasswordFile = origin.AuthNode, "ann", file
		c := newClient(t, u)
		r.Reset()
		for range 3 {
			if got, err := fetch(t, c, b.Run()); err != nil || !bytes.Equal(got, content) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		}
		if n := r.Count().Challenges; n != 1 {
			t.Errorf("%d challenges, want one", n)
		}
		write(t, file, "guess\n", 0o600)
		if _, err := fetch(t, c, b.Run()); !errors.Is(err, origin.ErrDenied) || strings.Contains(err.Error(), "guess") {
			t.Errorf("with another password in the file: %v, want ErrDenied", err)
		}
		r.AddUser("ann", "new")
		write(t, file, "new", 0o600)
		if got, err := fetch(t, c, b.Run()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("with the new password: %d bytes, %v", len(got), err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, err := fetch(t, c, b.Run()); !errors.Is(err, origin.ErrDenied) || !strings.Contains(err.Error(), file) {
			t.Errorf("without the file: %v, want ErrDenied that names it", err)
		}
	}
}
