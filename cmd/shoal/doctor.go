package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/runtimes"
)

// examineWithin bounds the whole examination. The node gives each registry and
// each member five seconds, a few at once.
const examineWithin = time.Minute

type doctorCmd struct {
	nodeFlag
	runtimeFlags
	Runtime []string `placeholder:"NAME" enum:"containerd,docker,podman,crio" help:"runtimes that shall use the mirror: containerd, docker, podman, crio (default: those of this machine)"`
	JSON    bool     `name:"json" help:"print the checks for a program"`
}

// Help is kong's longer text.
func (doctorCmd) Help() string {
	return "Looks at each link of the chain from a runtime of this machine to the registries, and says what to do about each that does not hold: the runtime's configuration, the mirror, the node, its fleet, the registries, clock, disk, secrets and certificates. It changes nothing. It fails if a check does."
}

// Run examines a node and the runtimes beside it.
func (c *doctorCmd) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), examineWithin)
	defer cancel()
	checks := c.examine(ctx)
	if c.JSON {
		if err := printJSON(os.Stdout, checks); err != nil {
			return err
		}
	} else {
		printChecks(os.Stdout, checks)
	}
	failed := 0
	for _, k := range checks {
		if k.State == admin.CheckFail {
			failed++
		}
	}
	switch failed {
	case 0:
		return nil
	case 1:
		return errors.New("1 check failed")
	}
	return fmt.Errorf("%d checks failed", failed)
}

// examine makes all checks, from the runtime inwards.
func (c *doctorCmd) examine(ctx context.Context) []admin.Check {
	var checks []admin.Check
	cfg, err := c.node()
	if err != nil {
		checks = append(checks, broken("configuration", err, "put it right; shoal config --check lists all mistakes"))
		cfg = daemon.Default()
	}
	status, node := c.nodeChecks(ctx)
	if c.Mirror == "" && status.Mirror != "" && !strings.HasPrefix(status.Mirror, "unix:") {
		cfg.Mirror.Listen = status.Mirror // of the node that runs, whatever the file says
	}
	o, err := c.of(cfg)
	if err != nil {
		checks = append(checks, broken("mirror", err, "say which with --mirror, or name the node's configuration with --config"))
	} else {
		var found, seen []admin.Check
		for _, k := range c.kinds() {
			found = append(found, runtimeCheck(k, o))
			seen = append(seen, seenCheck(ctx, k, o)...)
		}
		if len(c.Runtime) == 0 {
			forgive(found)
		}
		checks = append(append(checks, found...), seen...)
	}
	if o.Mirror != "" || strings.HasPrefix(cfg.Mirror.Listen, "unix:") {
		checks = append(checks, mirrorCheck(ctx, cfg, o))
	}
	return append(checks, node...)
}

// forgive makes light of runtimes that do not use the mirror, if another one
// does: a machine with docker has a containerd that nobody asks for images.
func forgive(checks []admin.Check) {
	if !slices.ContainsFunc(checks, func(k admin.Check) bool { return k.State == admin.CheckOK }) {
		return
	}
	for i := range checks {
		if k := &checks[i]; k.State == admin.CheckFail {
			k.State, k.Advice = admin.CheckSkip, "if images are pulled with it: "+k.Advice
		}
	}
}

// kinds are the runtimes to look at.
func (c *doctorCmd) kinds() []runtimes.Kind {
	var ks []runtimes.Kind
	for _, k := range runtimes.Kinds {
		if slices.Contains(c.Runtime, string(k)) || len(c.Runtime) == 0 && installed(k) {
			ks = append(ks, k)
		}
	}
	return ks
}

// programs are what shows that a runtime is on this machine.
var programs = map[runtimes.Kind]string{
	runtimes.Containerd: "containerd", runtimes.Docker: "dockerd", runtimes.Podman: "podman", runtimes.CRIO: "crio",
}

func installed(k runtimes.Kind) bool {
	if _, err := exec.LookPath(programs[k]); err == nil {
		return true
	}
	_, err := os.Stat(filepath.Join("/usr/sbin", programs[k])) // not in the PATH of a user
	return err == nil
}

// broken is a check that ended with an error.
func broken(name string, err error, advice string) admin.Check {
	return admin.Check{Name: name, State: admin.CheckFail, Detail: strings.ReplaceAll(err.Error(), "\n", "; "), Advice: advice}
}

// nodeChecks asks the node what it finds.
func (c *doctorCmd) nodeChecks(ctx context.Context) (admin.Status, []admin.Check) {
	client := c.client()
	s, err := client.Status(ctx)
	if err != nil {
		return s, []admin.Check{broken("node", err, "without the node the runtimes go to the registries themselves; if it runs elsewhere, say where with --admin")}
	}
	k := admin.Check{Name: "node", State: admin.CheckOK, Detail: fmt.Sprintf("%s (%s) runs shoal %s", s.Name, s.Roles, s.Version)}
	if v := version().Version; v != s.Version {
		k.State, k.Detail = admin.CheckWarn, k.Detail+", and this command is of "+v
		k.Advice = "start the node again with the new binary"
	}
	checks, err := client.Checks(ctx)
	if err != nil {
		return s, []admin.Check{k, broken("checks", err, "see the log of the node")}
	}
	return s, append([]admin.Check{k}, checks...)
}

// runtimeCheck reads the configuration of a runtime.
func runtimeCheck(k runtimes.Kind, o runtimes.Options) admin.Check {
	name := "runtime " + string(k)
	o.Registries = slices.DeleteFunc(slices.Clone(o.Registries), func(r string) bool { return !runtimes.Takes(k, r) })
	if len(o.Registries) == 0 {
		return admin.Check{Name: name, State: admin.CheckSkip, Detail: "it takes a mirror for none of the node's registries"}
	}
	r, err := runtimes.Check(k, o)
	if err != nil {
		return broken(name, err, "see what the file says")
	}
	if len(r.Missed) == 0 {
		return admin.Check{Name: name, State: admin.CheckOK, Detail: fmt.Sprintf("asks %s first for %s", o.Mirror, strings.Join(r.Served, ", "))}
	}
	var missed []string
	for _, m := range r.Missed {
		missed = append(missed, m.Registry+": "+m.Why)
	}
	check := admin.Check{Name: name, State: admin.CheckWarn, Detail: strings.Join(missed, "; "), Advice: "shoal configure " + string(k) + " --dry-run shows what to change"}
	if len(r.Served) == 0 {
		check.State = admin.CheckFail
		if len(missed) > 1 && allSame(r.Missed) {
			check.Detail = r.Missed[0].Why
		}
	}
	return check
}

func allSame(ms []runtimes.Missed) bool {
	return !slices.ContainsFunc(ms, func(m runtimes.Missed) bool { return m.Why != ms[0].Why })
}

// mirrorCheck asks the mirror as a runtime would.
func mirrorCheck(ctx context.Context, cfg daemon.Config, o runtimes.Options) admin.Check {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	t := &http.Transport{DisableKeepAlives: true}
	at, shown := o.Mirror, o.Mirror
	if path, is := strings.CutPrefix(cfg.Mirror.Listen, "unix:"); is && o.Mirror == "" {
		at, shown = "http://shoal", cfg.Mirror.Listen
		if cfg.Mirror.TLS.Cert != "" {
			at = "https://shoal"
		}
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	if len(o.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pool.AppendCertsFromPEM(o.CA)
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/v2/", nil)
	if err != nil {
		return broken("mirror", err, "write it as http://127.0.0.1:7050")
	}
	client := http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	asked := time.Now()
	resp, err := client.Do(req)
	var unknown *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown):
		return broken("mirror", err, "give its CA with --mirror-ca, and see that the certificate is for that name and has not ended")
	case err != nil:
		return broken("mirror", err, "see that shoal daemon runs, that mirror.listen is that address, and that mirror.allowFrom lets this machine in")
	}
	defer resp.Body.Close() // not read
	// 401: who the default upstream is may want to know who asks.
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
		return broken("mirror", fmt.Errorf("%s answered %s", shown, resp.Status), "see that it is the address of shoal's mirror.listen, and not of another program")
	}
	return admin.Check{Name: "mirror", State: admin.CheckOK, Detail: fmt.Sprintf("%s answers after %s", shown, time.Since(asked).Round(time.Millisecond))}
}

// seenCheck sees whether a runtime that runs has read what its files say. It
// returns nothing if that cannot be told.
func seenCheck(ctx context.Context, k runtimes.Kind, o runtimes.Options) []admin.Check {
	if o.Root != "/" {
		return nil
	}
	switch k {
	case runtimes.Docker:
		return dockerSeen(ctx, "/run/docker.sock", o)
	case runtimes.Containerd:
		return containerdSeen("/proc", "/etc/containerd/config.toml")
	}
	return nil
}

// dockerSeen asks dockerd which mirrors it uses.
func dockerSeen(ctx context.Context, socket string, o runtimes.Options) []admin.Check {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/info", nil)
	if err != nil {
		return nil
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil // it does not run, or this user may not ask it
	}
	defer resp.Body.Close() // read as far as it is of use
	var info struct{ RegistryConfig struct{ Mirrors []string } }
	if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&info) != nil {
		return nil
	}
	uses := slices.ContainsFunc(info.RegistryConfig.Mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == o.Mirror })
	r, err := runtimes.Check(runtimes.Docker, runtimes.Options{Root: o.Root, Mirror: o.Mirror, Registries: []string{"docker.io"}})
	if uses || err != nil || len(r.Served) == 0 {
		return nil // as its files say
	}
	return []admin.Check{{Name: "runtime docker", State: admin.CheckFail, Detail: "dockerd has not read its configuration since it was changed", Advice: "systemctl reload docker"}}
}

// containerdSeen compares when containerd was started with when its
// configuration was changed.
func containerdSeen(proc, config string) []admin.Check {
	info, err := os.Stat(config)
	if err != nil {
		return nil
	}
	started, ok := startOf(proc, "containerd")
	if !ok || !info.ModTime().After(started) {
		return nil
	}
	return []admin.Check{{Name: "runtime containerd", State: admin.CheckWarn, Detail: config + " was changed after containerd was started", Advice: "systemctl restart containerd, if it was not read since"}}
}

// startOf returns when a program was started, by the newest process of that
// name (proc(5), stat).
func startOf(proc, name string) (time.Time, bool) {
	var boot int64
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return time.Time{}, false
	}
	for line := range strings.Lines(string(stat)) {
		if v, is := strings.CutPrefix(line, "btime "); is {
			boot, _ = strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		}
	}
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat")) // of a pattern that is right
	var newest int64
	found := false
	for _, f := range files {
		data, err := os.ReadFile(f)
		end := strings.LastIndexByte(string(data), ')')
		if err != nil || end < 0 || !strings.HasSuffix(string(data[:end]), "("+name) {
			continue
		}
		// The 22nd field is the start in ticks since the boot, of which there are
		// a hundred a second on every Linux; the third follows the name.
		fields := strings.Fields(string(data[end+1:]))
		if len(fields) < 20 {
			continue
		}
		if ticks, err := strconv.ParseInt(fields[19], 10, 64); err == nil && (!found || ticks > newest) {
			newest, found = ticks, true
		}
	}
	return time.Unix(boot+newest/100, newest%100*1e7), found && boot > 0
}

// printChecks writes checks for a person.
func printChecks(w io.Writer, checks []admin.Check) {
	width := 0
	for _, k := range checks {
		width = max(width, len(k.Name))
	}
	for _, k := range checks {
		fmt.Fprintf(w, "%-4s  %-*s  %s\n", k.State, width, k.Name, k.Detail)
		if k.Advice != "" {
			fmt.Fprintf(w, "%*s→ %s\n", width+8, "", k.Advice)
		}
	}
}
