package runtimes

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"
)

// write makes files below root, with the modes of people who are not careful.
func write(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(root, name)
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(name, ".json") {
			mode = 0o600
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// snapshot returns all below root: files with their modes and content, folders.
func snapshot(t testing.TB, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		all[rel] = fi.Mode().String()
		if d.Type().IsRegular() {
			data, err := os.ReadFile(name)
			all[rel] += "\n" + string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// diff says how two snapshots differ.
func diff(a, b map[string]string) string {
	var out []string
	for k, v := range a {
		if w, ok := b[k]; !ok {
			out = append(out, "gone: "+k)
		} else if v != w {
			out = append(out, "other: "+k+"\n"+v+"\n---\n"+w)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, "new: "+k)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// configure plans and applies.
func configure(t testing.TB, k Kind, o Options) *Plan {
	t.Helper()
	p, err := New(k, o)
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func undo(t testing.TB, k Kind, o Options) *Plan {
	t.Helper()
	p, err := Undo(k, o, false)
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// parse reads the first line of a case: KIND MIRROR REGISTRY… [ca] [proxy=URL] [proxyca]
func parse(t *testing.T, root, comment string) (Kind, Options, string) {
	first, rest, _ := strings.Cut(comment, "\n")
	f := strings.Fields(first)
	o := Options{Root: root, Mirror: f[1]}
	for _, w := range f[2:] {
		switch proxy, is := strings.CutPrefix(w, "proxy="); {
		case is:
			o.Proxy = proxy
		case w == "ca":
			o.CAFile, o.CA = "/etc/shoal/ca.pem", []byte("the CA of the mirror\n")
		case w == "proxyca":
			o.ProxyCA = []byte("the CA of the proxy\n")
		default:
			o.Registries = append(o.Registries, w)
		}
	}
	restart, _ := strings.CutPrefix(strings.TrimSpace(rest), "restart:")
	return Kind(f[0]), o, strings.TrimSpace(restart)
}

// TestCases: what is written is what is wanted, to the byte, a second run has
// nothing to do, the check agrees, and undo leaves all as it was: content, modes
// and folders.
func TestCases(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			k, o, restart := parse(t, root, string(a.Comment))
			before, want := map[string]string{}, map[string]string{}
			for _, f := range a.Files {
				if name, is := strings.CutPrefix(f.Name, "want/"); is {
					want[name] = string(f.Data)
				} else {
					before[f.Name] = string(f.Data)
				}
			}
			write(t, root, before)
			was := snapshot(t, root)

			p := configure(t, k, o)
			if p.Restart != restart {
				t.Errorf("restart: %q, want %q", p.Restart, restart)
			}
			got := map[string]string{}
			for name, content := range snapshot(t, root) {
				_, content, isFile := strings.Cut(content, "\n")
				if isFile && !strings.HasSuffix(name, backupSuffix) && filepath.Base(name) != "shoal-configure.json" {
					got[name] = content
				}
			}
			if d := diff(want, got); d != "" {
				t.Errorf("other than wanted:\n%s", d)
			}

			now := snapshot(t, root)
			if p := configure(t, k, o); len(p.Changes) != 0 || p.Restart != "" {
				t.Errorf("a second run would change\n%s", p.Diff())
			}
			if d := diff(now, snapshot(t, root)); d != "" {
				t.Errorf("a second run changed\n%s", d)
			}
			r, err := Check(k, o)
			for _, m := range r.Missed {
				if m.Registry != "bad.example" && Takes(k, m.Registry) {
					t.Errorf("%s: %s", m.Registry, m.Why)
				}
			}
			if err != nil || len(r.Served) == 0 {
				t.Error(r, err)
			}
			undo(t, k, o)
			if d := diff(was, snapshot(t, root)); d != "" {
				t.Errorf("after undo:\n%s", d)
			}
			if r, err := Check(k, o); err != nil || len(r.Missed) == 0 {
				t.Errorf("after undo the check says %+v, %v", r, err)
			}
		})
	}
}

const mirror = "http://127.0.0.1:7050"

// TestRefused: what must not be edited is left alone, and the error says what to
// do by hand.
func TestRefused(t *testing.T) {
	t.Parallel()
	const config = "etc/containerd/config.toml"
	for _, tt := range []struct {
		name  string
		kind  Kind
		files map[string]string
		says  string
	}{
		{"broken TOML", Containerd, map[string]string{config: "version = 2\n[plugins\n"}, "not valid TOML"},
		{"inline table", Containerd, map[string]string{config: "version = 2\nplugins = {}\n"}, "by hand"},
		{"not a table", Containerd, map[string]string{config: "version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\" = 1\n"}, "by hand"},
		{"not a string", Containerd, map[string]string{config: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = 1\n"}, "by hand"},
		{"old mirrors", Containerd, map[string]string{config: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://a.example\"]\n"}, "mirrors.docker.io"},
		{"generated", Containerd, map[string]string{config: "# File generated by k3s. DO NOT EDIT.\nversion = 2\n"}, "another program"},
		{"imported section", Containerd, map[string]string{
			config:                         "version = 2\nimports = [\"conf.d/*.toml\"]\n",
			"etc/containerd/conf.d/a.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n",
		}, "conf.d/a.toml"},
		{"certificates", Containerd, map[string]string{
			config: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
			"etc/containerd/certs.d/docker.io/ca.crt": "…",
		}, "certificates"},
		{"inline hosts", Containerd, map[string]string{
			config: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
			"etc/containerd/certs.d/docker.io/hosts.toml": "host = {\"https://a.example\" = {}}\n",
		}, "by"},
		{"broken JSON", Docker, map[string]string{"etc/docker/daemon.json": "{\n\"debug\": true,\n}\n"}, "put it right first"},
		{"a list", Docker, map[string]string{"etc/docker/daemon.json": "[]"}, "not a JSON object"},
		{"key twice", Docker, map[string]string{"etc/docker/daemon.json": `{"registry-mirrors": [], "registry-mirrors": []}`}, "twice"},
		{"mirrors are a text", Docker, map[string]string{"etc/docker/daemon.json": `{"registry-mirrors": "a"}`}, "put it right first"},
		{"mirrors are null", Docker, map[string]string{"etc/docker/daemon.json": `{"registry-mirrors": null}`}, "not a list"},
		{"flag", Docker, map[string]string{"etc/default/docker": "#DOCKER_OPTS=\nDOCKER_OPTS=\"--registry-mirror=https://a.example\"\n"}, "does not start"},
		{"version 1", Podman, map[string]string{"etc/containers/registries.conf": "[registries.search]\nregistries = ['docker.io']\n"}, "before 2019"},
		{"later drop-in", CRIO, map[string]string{"etc/containers/registries.conf.d/zzz.conf": "[[registry]]\nlocation = \"docker.io\"\n"}, "is read after"},
		{"own file of theirs", Podman, map[string]string{"etc/containers/registries.conf.d/zz-shoal.conf": "unqualified-search-registries = []\n"}, "somebody else"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			write(t, root, tt.files)
			was := snapshot(t, root)
			_, err := New(tt.kind, Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}})
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want it to say %q", err, tt.says)
			}
			if d := diff(was, snapshot(t, root)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestLinks: nothing is written through a link that leads elsewhere, and no link
// is replaced by a file.
func TestLinks(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(root, out string) error{
		"folder out of the root": func(root, out string) error { return os.Symlink(out, filepath.Join(root, "etc/docker")) },
		"relative folder out of the root": func(root, out string) error {
			return os.Symlink("../../"+filepath.Base(filepath.Dir(out))+"/"+filepath.Base(out), filepath.Join(root, "etc/docker"))
		},
		"file": func(root, out string) error {
			return errors.Join(os.Mkdir(filepath.Join(root, "etc/docker"), 0o755),
				os.Symlink("../else.json", filepath.Join(root, "etc/docker/daemon.json")), os.WriteFile(filepath.Join(root, "etc/else.json"), []byte("{}"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, out := t.TempDir(), t.TempDir()
			write(t, out, map[string]string{"daemon.json": "{}"})
			if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), make(root, out)); err != nil {
				t.Fatal(err)
			}
			was, outside := snapshot(t, root), snapshot(t, out)
			p, err := New(Docker, Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}})
			if err == nil {
				err = p.Apply()
			}
			if !errors.Is(err, ErrRefused) {
				t.Errorf("%v, want a refusal", err)
			}
			if d := diff(was, snapshot(t, root)) + diff(outside, snapshot(t, out)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestInsideLink: a folder that is a link within the root is followed.
func TestInsideLink(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, map[string]string{"srv/docker/daemon.json": "{}"})
	if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Symlink("../srv/docker", filepath.Join(root, "etc/docker"))); err != nil {
		t.Fatal(err)
	}
	was := snapshot(t, root)
	o := Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}}
	configure(t, Docker, o)
	if got := snapshot(t, root)["srv/docker/daemon.json"]; !strings.Contains(got, mirror) {
		t.Error(got)
	}
	undo(t, Docker, o)
	if d := diff(was, snapshot(t, root)); d != "" {
		t.Error(d)
	}
}

// TestEdited: an undo does not lose what was written since, unless it is told to.
func TestEdited(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, map[string]string{"etc/docker/daemon.json": `{"debug": true}`})
	was := snapshot(t, root)
	o := Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}}
	configure(t, Docker, o)
	write(t, root, map[string]string{"etc/docker/daemon.json": `{"debug": false, "registry-mirrors": ["` + mirror + `", "https://a.example"]}`})
	edited := snapshot(t, root)
	if _, err := Undo(Docker, o, false); !errors.Is(err, ErrEdited) || !strings.Contains(err.Error(), "daemon.json") {
		t.Fatal(err)
	}
	if d := diff(edited, snapshot(t, root)); d != "" {
		t.Error(d)
	}

	// Another mirror takes the place of the old one, and the edits stay.
	o.Mirror = "http://127.0.0.1:9999"
	configure(t, Docker, o)
	if got, want := snapshot(t, root)["etc/docker/daemon.json"], "-rw-------\n"+`{"debug": false, "registry-mirrors": ["http://127.0.0.1:9999", "https://a.example"]}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	undo(t, Docker, o)
	if got, want := snapshot(t, root)["etc/docker/daemon.json"], "-rw-------\n"+`{"debug": false, "registry-mirrors": ["https://a.example"]}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}

	write(t, root, map[string]string{"etc/docker/daemon.json": `{"debug": true}`})
	configure(t, Docker, o)
	write(t, root, map[string]string{"etc/docker/daemon.json": `edited`})
	p, err := Undo(Docker, o, true)
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(was, snapshot(t, root)); d != "" {
		t.Error(d)
	}
}

// TestEditedHosts is the same of a hosts.toml.
func TestEditedHosts(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	o := Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}}
	configure(t, Containerd, o)
	file := filepath.Join(root, "etc/containerd/certs.d/docker.io/hosts.toml")
	data, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append([]byte("server = \"https://b.example\"\n"), append(data, "\n# mine\n[host.\"https://a.example\"]\n"...)...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	o.Mirror = "http://127.0.0.1:9999"
	configure(t, Containerd, o)
	want := "server = \"https://b.example\"\n" + hostsComment + `[host."http://127.0.0.1:9999"]
  capabilities = ["pull", "resolve"]

# mine
[host."https://a.example"]
`
	if data, err := os.ReadFile(file); err != nil || string(data) != want {
		t.Errorf("%s%v, want\n%s", data, err, want)
	}
}

// TestChangedMeanwhile: what was changed between plan and Apply is not
// overwritten.
func TestChangedMeanwhile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	p, err := New(Docker, Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, map[string]string{"etc/docker/daemon.json": "{}"})
	was := snapshot(t, root)
	if err := p.Apply(); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Error(err)
	}
	if d := diff(was, snapshot(t, root)); d != "" {
		t.Error(d)
	}
}

// TestCutOff: whatever a run that was cut off has done, undo takes back, and
// another run completes.
func TestCutOff(t *testing.T) {
	t.Parallel()
	for done := range 4 {
		for _, again := range []bool{false, true} {
			root := t.TempDir()
			write(t, root, map[string]string{"etc/containerd/config.toml": "version = 2\n"})
			was := snapshot(t, root)
			o := Options{Root: root, Mirror: mirror, Registries: []string{"docker.io", "ghcr.io"}}
			p, err := New(Containerd, o)
			if err != nil || len(p.Changes) != 3 {
				t.Fatal(p, err)
			}
			tr, err := openTree(Containerd, p.o)
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.prepare(p.Changes); err != nil {
				t.Fatal(err)
			}
			for _, c := range p.Changes[:done] {
				if err := tr.change(c); err != nil {
					t.Fatal(err)
				}
			}
			tr.close()
			if again {
				configure(t, Containerd, o)
				if r, err := Check(Containerd, o); err != nil || len(r.Served) != 2 {
					t.Error(r, err)
				}
			}
			undo(t, Containerd, o)
			if d := diff(was, snapshot(t, root)); d != "" {
				t.Errorf("%d done, run again: %t\n%s", done, again, d)
			}
		}
	}
}

// TestCutOffLater: a second run that was cut off leaves what the first one wrote,
// which is no edit of somebody's.
func TestCutOffLater(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, map[string]string{"etc/docker/daemon.json": "{}"})
	was := snapshot(t, root)
	o := Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}}
	configure(t, Docker, o)
	o.Mirror = "http://127.0.0.1:9999"
	p, err := New(Docker, o)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := openTree(Docker, p.o)
	if err == nil {
		err = tr.prepare(p.Changes)
	}
	if err != nil {
		t.Fatal(err)
	}
	tr.close()
	undo(t, Docker, o)
	if d := diff(was, snapshot(t, root)); d != "" {
		t.Error(d)
	}
}

// TestDamagedBackup: a backup that is not what was kept is never put back.
func TestDamagedBackup(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, map[string]string{"etc/docker/daemon.json": "{}"})
	o := Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}}
	configure(t, Docker, o)
	write(t, root, map[string]string{"etc/docker/daemon.json" + backupSuffix: "{"})
	was := snapshot(t, root)
	if _, err := Undo(Docker, o, true); err == nil {
		t.Error("undo did not notice")
	}
	if d := diff(was, snapshot(t, root)); d != "" {
		t.Error(d)
	}
}

// TestStrangersFile: a folder that was made here and has become somebody's stays.
func TestStrangersFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	o := Options{Root: root, Mirror: mirror, Registries: []string{"docker.io"}}
	configure(t, Containerd, o)
	write(t, root, map[string]string{"etc/containerd/certs.d/docker.io/ca.crt": "…"})
	undo(t, Containerd, o)
	got := snapshot(t, root)
	if _, ok := got["etc/containerd/certs.d/docker.io/ca.crt"]; !ok || len(got) != 6 {
		t.Error(slices.Sorted(maps.Keys(got)))
	}
}

// TestAnyOrder: whatever is configured in whatever order, the last statement
// holds, and undo leads back to the byte.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string]string{
		"etc/containerd/config.toml":                           "version = 2\n[debug]\n level = \"info\"",
		"etc/containerd/certs.d/ghcr.io/hosts.toml":            "server = \"https://a.example\"",
		"etc/docker/daemon.json":                               "{\"registry-mirrors\": [\"https://a.example\"]}",
		"etc/containers/registries.conf":                       "[[registry]]\nlocation = \"ghcr.io\"\ninsecure = true\n",
		"etc/containers/registries.conf.d/000-shortnames.conf": "[aliases]\n",
	}
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if rapid.Bool().Draw(t, name) {
				file := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o640)); err != nil {
					t.Fatal(err)
				}
			}
		}
		was := snapshotOf(t, root)
		k := rapid.SampledFrom(Kinds).Draw(t, "kind")
		var o Options
		for range rapid.IntRange(1, 4).Draw(t, "runs") {
			o = Options{
				Root: root, Mirror: rapid.SampledFrom([]string{mirror, "http://127.0.0.1:9999", "https://10.0.0.1:7050"}).Draw(t, "mirror"),
				Registries: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"docker.io", "ghcr.io", "r.example:5000"}), 1, 3, rapid.ID).Draw(t, "registries"),
			}
			if strings.HasPrefix(o.Mirror, "https") {
				o.CAFile, o.CA = "/ca.pem", []byte("ca")
			}
			p, err := New(k, o)
			if err == nil {
				err = p.Apply()
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := Check(k, o)
			taken := slices.DeleteFunc(slices.Clone(o.Registries), func(r string) bool { return !Takes(k, r) })
			if err != nil || !slices.Equal(r.Served, taken) {
				t.Fatal(r, err)
			}
			for name, content := range snapshotOf(t, root) {
				if rest := strings.ReplaceAll(content, o.Mirror, ""); filepath.Base(name) != "shoal-configure.json" &&
					(strings.Contains(rest, "http://127.0.0.1") || strings.Contains(rest, "https://10.")) {
					t.Fatalf("%s has a mirror of an earlier run:\n%s", name, content)
				}
			}
		}
		p, err := Undo(k, o, false)
		if err == nil {
			err = p.Apply()
		}
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(was, snapshotOf(t, root)); d != "" {
			t.Fatal(d)
		}
	})
}

// snapshotOf is snapshot for rapid.
func snapshotOf(t *rapid.T, root string) map[string]string {
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		rel, _ := filepath.Rel(root, name)
		all[rel] = fi.Mode().String()
		if err == nil && d.Type().IsRegular() {
			data, rerr := os.ReadFile(name)
			all[rel] += "\n" + string(data)
			return rerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestMistakes: options that would become part of a path or of a text are
// checked.
func TestMistakes(t *testing.T) {
	t.Parallel()
	good := Options{Root: t.TempDir(), Mirror: mirror, Registries: []string{"docker.io"}}
	for name, change := range map[string]func(*Options){
		"registry with a path":   func(o *Options) { o.Registries = []string{"docker.io/library"} },
		"registry that climbs":   func(o *Options) { o.Registries = []string{".."} },
		"registry with a quote":  func(o *Options) { o.Registries = []string{"a\"]\nb"} },
		"no registry":            func(o *Options) { o.Registries = nil },
		"mirror without scheme":  func(o *Options) { o.Mirror = "127.0.0.1:7050" },
		"mirror on a socket":     func(o *Options) { o.Mirror = "unix:/run/shoal.sock" },
		"mirror with a path":     func(o *Options) { o.Mirror = mirror + "/v2" },
		"mirror with a password": func(o *Options) { o.Mirror = "http://a:b@127.0.0.1" },
		"proxy for containerd":   func(o *Options) { o.Proxy = mirror },
		"relative file":          func(o *Options) { o.File = "config.toml" },
		"file that climbs":       func(o *Options) { o.File = "/etc/../../config.toml" },
		"relative CA":            func(o *Options) { o.CAFile = "ca.pem" },
	} {
		o := good
		change(&o)
		if _, err := New(Containerd, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New("cri-o", good); err == nil {
		t.Error("an unknown runtime is no error")
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	p := Plan{Changes: []Change{
		{Path: "/a", Before: []byte("1\n2\n3\n4\n5\n6\n7\n8\n9"), After: []byte("1\n2\n3\n4\nfive\n6\n7\n8\n9")},
		{Path: "/b", After: []byte("new\n")},
	}}
	want := `--- a/a
+++ b/a
@@ -2,7 +2,7 @@
 2
 3
 4
-5
+five
 6
 7
 8
--- /dev/null
+++ b/b
@@ -0,0 +1,1 @@
+new
`
	if got := p.Diff(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
