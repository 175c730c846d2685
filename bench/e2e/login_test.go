//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/netns"
)

// doorOf returns the forward proxy of a host as a door to a registry.
func doorOf(t *testing.T, at *netns.Host, ca, registry string) *door {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	proxy, err := url.Parse(proxyURL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{
		Proxy: http.ProxyURL(proxy), DialContext: at.Dial, TLSClientConfig: &tls.Config{RootCAs: roots},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &door{client: &http.Client{Transport: transport}, url: "https://" + registry}
}

// TestLoginsThroughProxy: dockerd, after docker login, and podman with --creds
// pull private images through the forward proxy from a registry with a token
// server, over TLS, from another address. The registry says who may; the node
// keeps what it has fetched, and gives it to nobody else.
func TestLoginsThroughProxy(t *testing.T) {
	dir := workDir(t)
	at, node := twoHosts(t)
	o := startPrivate(t)
	names, ca := o.serveTLS(t, dir, at, 5000, 5001)
	trust := startProxy(t, dir, node,
		fmt.Sprintf("%q: {ca: %s, auth: passthrough}", names[0], ca),
		fmt.Sprintf("%q: {ca: %s}", names[1], ca)) // nobody has told the node of logins
	t.Run("docker", func(t *testing.T) {
		img := o.push(t, "team/private", true, 12*mib, 1000)
		d := startDockerBehind(t, dir, node, trust)
		logins{
			origin: o, door: doorOf(t, node, trust, names[0]), image: img,
			pull: func(t *testing.T, name, secret string) error {
				return d.pullAs(t, img, names[0], name, secret)
			},
		}.check(t)
		// The registry alone decides, and the node keeps nothing.
		for range 2 {
			o.Reset()
			if err := d.pullAs(t, img, names[1], user, password); err != nil {
				t.Errorf("from an upstream without logins: %v", err)
			}
			o.checkOnce(t, img)
		}
	})
	t.Run("podman", func(t *testing.T) {
		img := o.push(t, "team/private/second", false, 12*mib, 1000)
		p := newPodmanBehind(t, dir, node, trust)
		logins{
			origin: o, door: doorOf(t, node, trust, names[0]), image: img,
			pull: func(t *testing.T, name, secret string) error {
				ref := names[0] + "/" + img.repository + ":v1"
				args := []string{"pull", ref}
				if name != "" {
					args = []string{"pull", "--creds", name + ":" + secret, ref}
				}
				if _, err := p.try(t, args...); err != nil {
					return err
				}
				p.checkContainer(t, img, ref)
				p.run(t, "rmi", "--force", ref)
				return nil
			},
		}.check(t)
	})
}

// TestCraneLogsIn: crane with a login follows the mirror's challenge to the
// registry's token server, and pulls; without it, it does not.
func TestCraneLogsIn(t *testing.T) {
	dir := workDir(t)
	o := startPrivate(t)
	n := o.startPassthrough(t, dir)
	for _, c := range []struct{ name, repository, prefix string }{
		{"with the upstream's name", "team/private", upstream + "/"},
		{"of the default upstream", "team/private/second", ""},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			img := o.push(t, c.repository, false, 12*mib, 1000)
			logins{
				origin: o, door: &door{client: http.DefaultClient, url: "http://" + n.Mirror}, image: img,
				pull: func(t *testing.T, name, secret string) error {
					home := t.TempDir()
					env := []string{"DOCKER_CONFIG=" + home}
					if name != "" {
						run(t, env, "crane", "auth", "login", n.Mirror, "--username", name, "--password", secret)
					}
					file := filepath.Join(home, "image.tar")
					if _, err := try(t, env, "crane", "pull", "--insecure", "--platform", "linux/"+runtime.GOARCH,
						n.Mirror+"/"+c.prefix+img.repository+":v1", file); err != nil {
						return err
					}
					run(t, env, "crane", "validate", "--tarball", file)
					img.checkTarball(t, file)
					return nil
				},
			}.check(t)
		})
	}
}

// logins are what is tried with a private image that nobody has pulled yet.
type logins struct {
	origin *private
	door   *door
	image  image
	// pull has a client pull the image with a login, none if name is "", checks
	// what came, and removes it.
	pull func(t *testing.T, name, secret string) error
}

// check lets those who may not have the image try, then who may, and all once
// more when the node has it.
func (l logins) check(t *testing.T) {
	t.Helper()
	l.origin.Reset()
	l.refused(t)
	l.origin.checkNothing(t, "for those who may not")

	if err := l.pull(t, user, password); err != nil {
		t.Fatal(err)
	}
	l.origin.checkOnce(t, l.image)

	l.origin.Reset()
	l.refused(t)
	l.door.checkOwner(t, l.origin, l.image)
	if err := l.pull(t, user, password); err != nil {
		t.Errorf("from the cache: %v", err)
	}
	l.origin.checkNothing(t, "although the node has it all")
}

// refusal is how clients tell that it was for want of a right.
var refusal = regexp.MustCompile(`(?i)\b(denied|unauthorized|forbidden|401|403)\b`)

// refused has those try who may not have the image.
func (l logins) refused(t *testing.T) {
	t.Helper()
	for _, who := range []struct{ name, secret string }{{}, {user, "guess"}, {other, otherPassword}} {
		if err := l.pull(t, who.name, who.secret); err == nil {
			t.Errorf("%q with the password %q got the image", who.name, who.secret)
		} else if !refusal.MatchString(err.Error()) {
			t.Errorf("%q with the password %q failed for another reason: %v", who.name, who.secret, err)
		}
	}
	l.door.checkStrangers(t, l.origin, l.image)
}

// pullAs pulls an image of a registry with docker, after a login if there is a
// name, and removes it.
func (d dockerBehind) pullAs(t *testing.T, img image, registry, name, secret string) error {
	t.Helper()
	d.home = t.TempDir() // config.json
	if name != "" {
		if _, err := d.try(t, "login", "--username", name, "--password", secret, registry); err != nil {
			return err
		}
	}
	ref := registry + "/" + img.repository + ":v1"
	if _, err := d.try(t, "pull", ref); err != nil {
		return err
	}
	out, err := d.try(t, "run", "--rm", "--network", "none", ref)
	if err != nil {
		t.Error(err)
	}
	img.checkSums(t, "docker", out)
	if _, err := d.try(t, "rmi", "--force", ref); err != nil {
		t.Error(err)
	}
	return nil
}

// newPodmanBehind returns a podman on a host, whose proxy is the node.
func newPodmanBehind(t *testing.T, dir string, at *netns.Host, ca string) podman {
	t.Helper()
	conf := filepath.Join(dir, "no-registries.conf")
	write(t, conf, "")
	auth := filepath.Join(dir, "no-auth.json")
	write(t, auth, "{}")
	p := newPodman(t, dir, conf)
	p.env = append(p.env, behind(t, ca)...)
	p.env = append(p.env, "HOME="+dir, "REGISTRY_AUTH_FILE="+auth) // not the user's
	p.start = at.Start
	return p
}
