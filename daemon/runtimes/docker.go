package runtimes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
)

// dockerHub is the only registry that dockerd uses a mirror for.
const dockerHub = "docker.io"

// dockerConfig is what matters of a daemon.json.
type dockerConfig struct {
	src     []byte
	exists  bool
	mirrors []string
	list    []byte // their text, nil if they are not there
	proxies map[string]any
}

func readDocker(v view, o Options) (dockerConfig, error) {
	var c dockerConfig
	var err error
	if c.src, c.exists, err = v.read(o.File); err != nil {
		return c, err
	}
	all, err := members(c.src)
	if err == nil {
		for _, m := range all {
			raw := c.src[m.start:m.end]
			switch m.key {
			case "registry-mirrors":
				c.list = raw
				err = json.Unmarshal(raw, &c.mirrors)
				if c.mirrors == nil && err == nil {
					err = fmt.Errorf("registry-mirrors is %s, not a list", raw)
				}
			case "proxies":
				err = json.Unmarshal(raw, &c.proxies)
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w: put it right first: %w", o.File, err, ErrRefused)
	}
	return c, nil
}

func planDocker(v view, o Options) (edits, error) {
	var e edits
	c, err := readDocker(v, o)
	if err != nil {
		return e, err
	}
	out := c.src
	if slices.ContainsFunc(o.Registries, func(r string) bool { return r == dockerHub || r == Any }) {
		if out, err = withMirror(v, o, c); err != nil {
			return e, err
		}
		if err := e.certificates(v, "/etc/docker/certs.d", o.address(), o.CA); err != nil {
			return e, err
		}
	}
	others := slices.DeleteFunc(slices.Clone(o.Registries), func(r string) bool { return r == dockerHub })
	switch {
	case o.Proxy != "":
		if out, err = withProxies(out, o, c); err != nil {
			return e, err
		}
		for _, r := range o.Registries {
			if r == Any {
				continue
			}
			if r == dockerHub {
				r = "registry-1.docker.io"
			}
			if err := e.certificates(v, "/etc/docker/certs.d", r, o.ProxyCA); err != nil {
				return e, err
			}
		}
	case len(others) > 0:
		e.note("dockerd uses a mirror for docker.io only; for %s it needs the forward proxy: --proxy", strings.Join(others, ", "))
	}
	if len(out) > 0 {
		err = e.set(v, o.File, out)
	}
	return e, err
}

// certificates writes a copy of the certificates that a host is checked with.
func (e *edits) certificates(v view, dir, host string, pem []byte) error {
	if len(pem) == 0 {
		return nil
	}
	return e.set(v, path.Join(dir, host, "shoal.crt"), pem)
}

// flagFiles are where Debian, Red Hat and people give flags to dockerd.
var flagFiles = []string{"/etc/default/docker", "/etc/sysconfig/docker", "/etc/systemd/system/docker.service"}

// withMirror returns daemon.json with the mirror before the others.
func withMirror(v view, o Options, c dockerConfig) ([]byte, error) {
	if slices.ContainsFunc(c.mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == o.Mirror }) {
		return c.src, nil
	}
	for _, f := range append(flagFiles, dropIns(v)...) {
		data, ok, err := v.read(f)
		if err == nil && ok && bytes.Contains(uncommented(data), []byte("--registry-mirror")) {
			return nil, fmt.Errorf("%s gives dockerd --registry-mirror, and dockerd does not start if %s says the same: move that mirror there first: %w", f, o.File, ErrRefused)
		}
	}
	text := "[" + quoteJSON(o.Mirror) + "]"
	if c.list != nil {
		text = prepend(c.list, quoteJSON(o.Mirror))
	}
	value := []any{o.Mirror}
	for _, m := range c.mirrors {
		value = append(value, m)
	}
	return setChecked(o.File, c.src, "registry-mirrors", text, value)
}

// dropIns are the files that add to the service's unit.
func dropIns(v view) []string {
	const dir = "/etc/systemd/system/docker.service.d"
	names, _ := v.list(dir) // one that cannot be read is no reason to stop
	for i, n := range names {
		names[i] = path.Join(dir, n)
	}
	return names
}

// uncommented returns data without the lines that begin with a #.
func uncommented(data []byte) []byte {
	var out []byte
	for line := range bytes.Lines(data) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out
}

func setChecked(file string, src []byte, key, text string, value any) ([]byte, error) {
	out, err := setMember(src, key, text)
	if err == nil {
		err = checkJSON(src, out, key, value)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %q cannot be set: %w; set it to %s by hand: %w", file, key, err, text, ErrRefused)
	}
	return out, nil
}

// noProxy is what is never asked through the proxy: the mirror, among others.
const noProxy = "localhost,127.0.0.0/8,::1"

// withProxies returns daemon.json with the proxy.
func withProxies(src []byte, o Options, c dockerConfig) ([]byte, error) {
	if c.proxies != nil {
		if c.proxies["http-proxy"] == o.Proxy && c.proxies["https-proxy"] == o.Proxy {
			return src, nil
		}
		return nil, fmt.Errorf("%s has proxies already; which proxy is behind which is not to be guessed: set http-proxy and https-proxy to %s by hand, or take them out: %w", o.File, o.Proxy, ErrRefused)
	}
	text := fmt.Sprintf(`{"http-proxy": %s, "https-proxy": %[1]s, "no-proxy": %s}`, quoteJSON(o.Proxy), quoteJSON(noProxy))
	return setChecked(o.File, src, "proxies", text, map[string]any{"http-proxy": o.Proxy, "https-proxy": o.Proxy, "no-proxy": noProxy})
}

// proxiesDiffer reports whether two texts of daemon.json have other proxies,
// which dockerd reads at its start only.
func proxiesDiffer(a, b []byte) bool {
	of := func(src []byte) any {
		var m map[string]any
		_ = json.Unmarshal(src, &m) // no file has none
		return m["proxies"]
	}
	return !reflect.DeepEqual(of(a), of(b))
}

// withoutMirror returns a file that was edited since without the mirror that it
// was written for.
func withoutMirror(name string, data []byte, mirror string) []byte {
	switch name {
	case "hosts.toml":
		return withoutTable(data, "host", mirror)
	case "daemon.json":
		all, err := members(data)
		if err != nil {
			return data
		}
		i := slices.IndexFunc(all, func(m member) bool { return m.key == "registry-mirrors" })
		var list []string
		if i < 0 || json.Unmarshal(data[all[i].start:all[i].end], &list) != nil || !slices.Contains(list, mirror) {
			return data
		}
		list = slices.DeleteFunc(list, func(m string) bool { return m == mirror })
		text, _ := json.Marshal(list) // of strings
		return slices.Concat(data[:all[i].start], text, data[all[i].end:])
	}
	return data
}
