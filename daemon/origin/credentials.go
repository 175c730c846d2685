package origin

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// A credential is how to log in somewhere. The zero credential is nobody.
type credential struct {
	username, password string
	identityToken      string // an OAuth2 refresh token; then the rest is unused
	missing            string // says why there is none, to be put after a message
}

// login returns the function that finds the credential for the endpoint at
// base of the named upstream. A file is read at each call, so that a changed
// one counts at once.
func (u Upstream) login(name string, base *url.URL) func() (credential, error) {
	switch {
	case u.Auth != AuthNode:
		return func() (credential, error) {
			return credential{missing: ", and the upstream's auth is anonymous: set auth: node and credentials if it is private"}, nil
		}
	case u.CredentialsFile == "":
		return func() (credential, error) {
			return credential{username: u.Username, password: u.Password}, nil
		}
	}
	hosts := credentialHosts(name, base)
	return func() (credential, error) {
		config, err := readDockerConfig(u.CredentialsFile)
		if err != nil {
			return credential{}, err
		}
		return config.find(hosts, u.CredentialsFile)
	}
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

// readDockerConfig reads a docker config.json. Errors have none of its content.
func readDockerConfig(file string) (*dockerConfig, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	config, err := parseDockerConfig(data)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s: %w", file, err)
	}
	return config, nil
}

func parseDockerConfig(data []byte) (*dockerConfig, error) {
	var config dockerConfig
	if err := json.Unmarshal(data, &config); err != nil {
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

// find returns the entry of the first host that has one.
func (c *dockerConfig) find(hosts []string, file string) (credential, error) {
	for _, h := range hosts {
		if a, ok := c.Auths[h]; ok && (a.Username != "" || a.IdentityToken != "") {
			return credential{username: a.Username, password: a.Password, identityToken: a.IdentityToken}, nil
		}
	}
	missing := fmt.Sprintf(", and %s has none for %s", file, hosts[0])
	if c.CredsStore != "" || len(c.CredHelpers) > 0 {
		missing += " (credential helpers are not asked: the auths section must have it)"
	}
	return credential{missing: missing}, nil
}
