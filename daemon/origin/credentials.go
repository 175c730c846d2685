package origin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A credential is how to log in somewhere. The zero credential is nobody.
type credential struct {
	username, password string
	identityToken      string // an OAuth2 refresh token; then the rest is unused
	missing            string // says why there is none, to be put after a message
}

func (c credential) none() bool { return c.username == "" && c.identityToken == "" }

// A login finds the credential for one endpoint.
type login struct {
	upstream Upstream
	hosts    []string // whose entries in a docker config.json count, see credentialHosts
	helpers  helpers
}

func (u Upstream) newLogin(name string, base *url.URL) *login {
	l := &login{upstream: u, hosts: credentialHosts(name, base)}
	l.helpers.init()
	return l
}

// credential returns what to log in with. Files are read at each call, so that a
// changed one counts at once; a credential helper's answer is remembered for a
// moment. An error is an *attemptError or ctx's.
func (l *login) credential(ctx context.Context) (credential, error) {
	u := l.upstream
	switch {
	case u.Auth != AuthNode:
		return credential{missing: ", and the upstream's auth is anonymous: set auth: node and credentials if it is private, or auth: passthrough for the callers' own"}, nil
	case u.PasswordFile != "":
		password, err := readPassword(u.PasswordFile)
		if err != nil {
			return credential{}, denied("%v", err)
		}
		return credential{username: u.Username, password: password}, nil
	case u.CredentialsFile == "":
		return credential{username: u.Username, password: u.Password}, nil
	}
	stamp := l.stamp()
	config, err := readDockerConfig(u.CredentialsFile)
	if err != nil {
		return credential{}, denied("%v", err)
	}
	return l.find(ctx, config, stamp)
}

// find returns what config, which is of the given stamp, has for the first host
// that it has something for.
func (l *login) find(ctx context.Context, config *dockerConfig, stamp string) (credential, error) {
	for _, host := range l.hosts {
		// A secret in the file itself was put there by hand: docker leaves an
		// entry empty whose secret it gave to its store. So only a helper that is
		// named for this host is asked before. An empty name turns the store off.
		entry := config.Auths[host]
		cred := credential{username: entry.Username, password: entry.Password, identityToken: entry.IdentityToken}
		helper, own := config.CredHelpers[host]
		if !own && cred.none() {
			helper = config.CredsStore
		}
		if helper != "" {
			found, err := l.helpers.get(ctx, stamp, helper, host)
			if err != nil || !found.none() {
				return found, err
			}
		}
		if !cred.none() {
			return cred, nil
		}
	}
	return credential{missing: fmt.Sprintf(", and %s has none for %s", l.upstream.CredentialsFile, l.hosts[0])}, nil
}

// stamp returns a text that changes when the files do that the credential comes
// from. It costs a call of the kernel or two.
func (l *login) stamp() string {
	switch u := l.upstream; {
	case u.PasswordFile != "":
		return fileStamp(u.PasswordFile)
	case u.CredentialsFile != "":
		return fileStamp(dockerConfigFile(u.CredentialsFile))
	}
	return ""
}

// fileStamp tells versions of a file apart. A Kubernetes secret changes by a
// symbolic link that leads to another file, a careful program by a rename.
func fileStamp(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return "none"
	}
	inode := uint64(0)
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = s.Ino
	}
	return fmt.Sprintf("%s %d %d %d", file, info.ModTime().UnixNano(), info.Size(), inode)
}

// credentialHosts returns the hosts whose entries in a docker config.json are
// for the endpoint at base, the closest first. The upstream's own name counts
// if the endpoint is of its domain, so a foreign mirror never sees the
// registry's password.
func credentialHosts(name string, base *url.URL) []string {
	hosts := []string{base.Host}
	nameHost := (&url.URL{Host: name}).Hostname()
	if name != base.Host && (nameHost == base.Hostname() || sameDomain(nameHost, base.Hostname())) {
		hosts = append(hosts, name)
	}
	if domain(base.Hostname()) == "docker.io" {
		hosts = append(hosts, "index.docker.io") // where docker login puts it
	}
	return hosts
}

// A dockerConfig is what is used of docker's config.json.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type dockerAuth struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// legacyConfig is the name of the file whose content is an auths section and
// nothing else: docker's before 1.7, and Kubernetes' secrets of the type
// kubernetes.io/dockercfg.
const legacyConfig = ".dockercfg"

// dockerConfigFile returns the file that is meant by Upstream.CredentialsFile: in
// a directory, the first one that is there under a name which Kubernetes or
// docker uses.
func dockerConfigFile(path string) string {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return path
	}
	names := []string{".dockerconfigjson", "config.json", legacyConfig}
	for _, name := range names {
		file := filepath.Join(path, name)
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			return file
		}
	}
	return filepath.Join(path, names[0])
}

// readDockerConfig reads a docker config.json, or the one in a directory. Errors
// have none of its content.
func readDockerConfig(path string) (*dockerConfig, error) {
	file := dockerConfigFile(path)
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	config, err := parseDockerConfig(data, filepath.Base(file) == legacyConfig)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s: %w", file, err)
	}
	return config, nil
}

func parseDockerConfig(data []byte, legacy bool) (*dockerConfig, error) {
	var config dockerConfig
	var into any = &config
	if legacy {
		into = &config.Auths
	}
	if err := json.Unmarshal(data, into); err != nil {
		return nil, errors.New("not a docker config.json")
	}
	byHost := make(map[string]dockerAuth, len(config.Auths))
	for key, entry := range config.Auths {
		if entry.Auth != "" {
			pair, err := base64.StdEncoding.DecodeString(entry.Auth)
			user, password, ok := strings.Cut(string(pair), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("the auth of %q is not base64 of user:password", key)
			}
			entry.Username, entry.Password = user, strings.TrimRight(password, "\x00")
		}
		byHost[configHost(key)] = entry
	}
	config.Auths = byHost
	helpers := make(map[string]string, len(config.CredHelpers))
	for key, name := range config.CredHelpers {
		helpers[configHost(key)] = name
	}
	config.CredHelpers = helpers
	for host, name := range config.CredHelpers {
		if name != "" && !helperName.MatchString(name) {
			return nil, fmt.Errorf("the credential helper of %q is not a name that a program can have", host)
		}
	}
	if config.CredsStore != "" && !helperName.MatchString(config.CredsStore) {
		return nil, errors.New("its credsStore is not a name that a program can have")
	}
	return &config, nil
}

// configHost returns the host of a key of auths: docker writes a host, or a
// URL such as https://index.docker.io/v1/. A key for part of a registry, which
// podman knows, stays as it is and so stands for no host.
func configHost(key string) string {
	h := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	h = strings.TrimSuffix(h, "/")
	for _, version := range []string{"/v1", "/v2"} {
		h = strings.TrimSuffix(h, version)
	}
	return strings.ToLower(h)
}

// readPassword reads a file with a password in it. Errors have none of it.
func readPassword(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read passwordFile: %w", err)
	}
	password := strings.TrimRight(string(data), "\r\n")
	if password == "" {
		return "", fmt.Errorf("read passwordFile: %s is empty", file)
	}
	return password, nil
}
