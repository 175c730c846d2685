//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/bench/netns"
	"github.com/shoal-project/shoal/bench/process"
)

// TestDockerThroughProxy: dockerd pulls from a registry that is not docker.io,
// over TLS and by way of the forward proxy, once from the registry, then from the
// node, and then although the registry is gone; and what it pushes arrives. The
// registry has an address of another machine, since dockerd takes those that
// begin with 127 for insecure; dockerd trusts the proxy's CA and no other.
func TestDockerThroughProxy(t *testing.T) {
	dir := workDir(t)
	registry, node := twoHosts(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", true, 24*mib, 12*mib, 1000)
	host, cert, stop := serveTLS(t, registry, o, dir)

	ca := startProxy(t, dir, node, fmt.Sprintf("%q: {ca: %s}", host, cert))
	d := startDockerBehind(t, dir, node, ca)
	docker := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := d.try(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	ref := host + "/team/app:v1"
	pull := func() {
		t.Helper()
		docker(t, "pull", ref)
		img.checkSums(t, "docker", docker(t, "run", "--rm", "--network", "none", ref))
		docker(t, "rmi", "--force", ref)
	}

	pull()
	img.checkOnce(t, o)

	before := o.total() - o.left("") // without the answers to pings
	pull()
	if got := o.total() - o.left("") - before; got != 0 {
		t.Errorf("the node had the image, and %d bytes left the registry", got)
	}

	docker(t, "pull", ref)
	pushed := host + "/team/copy:v2"
	docker(t, "tag", ref, pushed)
	docker(t, "push", pushed)
	docker(t, "rmi", "--force", ref, pushed)
	resp, err := http.Head("http://" + o.registry + "/v2/team/copy/manifests/v2")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("what was pushed is not in the registry: %s", resp.Status)
	}

	stop()
	pull()
}

// twoHosts makes a network with a host for the registry and one for the node.
func twoHosts(t *testing.T) (registry, node *netns.Host) {
	t.Helper()
	lab, err := netns.New(netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, h := range []struct {
		name string
		host **netns.Host
	}{{"registry", &registry}, {"node", &node}} {
		if *h.host, err = lab.Host(h.name, 0, netns.Link{}); err != nil {
			t.Fatal(err)
		}
	}
	return registry, node
}

// serveTLS serves the origin over TLS at a host's address. It returns the
// registry's name, the file with its certificate, and how to end it.
func serveTLS(t *testing.T, at *netns.Host, o *origin, dir string) (name, file string, stop func()) {
	t.Helper()
	name = netip.AddrPortFrom(at.Addr(), 5000).String()
	ln, err := at.Listen(t.Context(), "tcp", name)
	if err != nil {
		t.Fatal(err)
	}
	cert := selfSigned(t, at.Addr())
	file = filepath.Join(dir, "registry.crt")
	write(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})))
	to, err := url.Parse(o.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
			r.Out.Header.Set("X-Forwarded-Proto", "https") // or it would name http URLs to upload to
		},
		ErrorLog: log.New(os.Stderr, "registry's TLS: ", 0),
	}
	srv := &http.Server{Handler: proxy, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.ServeTLS(ln, "", "")
	}()
	stop = func() {
		_ = srv.Close()
		<-done
	}
	t.Cleanup(stop)
	return name, file, stop
}

// selfSigned makes a certificate for an address that is its own CA.
func selfSigned(t *testing.T, addr netip.Addr) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry"}, IPAddresses: []net.IP{addr.AsSlice()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// proxyURL is where the forward proxy is, on the host of who uses it.
const proxyURL = "http://127.0.0.1:7054"

// startProxy starts a node with a forward proxy on a host, and returns the file
// of the CA that its clients have to trust. Each upstream is a line of YAML.
func startProxy(t *testing.T, dir string, at *netns.Host, upstreams ...string) (ca string) {
	t.Helper()
	config := filepath.Join(dir, "node.yaml")
	write(t, config, fmt.Sprintf(`
name: node
data: %s
mirror: {listen: "127.0.0.1:7050", default: ""}
proxy: {listen: "127.0.0.1:7054"}
upstreams:
  %s
`, filepath.Join(dir, "data"), strings.Join(upstreams, "\n  ")))
	run(t, nil, shoal, "ca", "init", "--config", config)
	n := startNode(t, process.NodeOptions{Name: "node", Command: "daemon", Args: []string{"--config", config, "--mirror.listen", "127.0.0.1:7050"},
		Start: at.Start, Dial: at.Dial})
	if err := process.Converge(startup(t), n); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "data", "ca.crt")
}

// behind returns the environment of a program that has the node as its proxy
// and trusts the proxy's CA alone.
func behind(t *testing.T, ca string) []string {
	t.Helper()
	return []string{
		"HTTP_PROXY=" + proxyURL, "HTTPS_PROXY=" + proxyURL, "NO_PROXY=", "http_proxy=", "https_proxy=", "no_proxy=",
		"SSL_CERT_FILE=" + ca, "SSL_CERT_DIR=" + t.TempDir(),
	}
}

// A dockerBehind is a dockerd whose proxy is the node.
type dockerBehind struct {
	socket, home string
}

// try runs a docker command.
func (d dockerBehind) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return try(t, []string{"DOCKER_CONFIG=" + d.home}, "docker", append([]string{"--host", d.socket}, args...)...)
}

// startDockerBehind starts a dockerd on a host, with the proxy there and with
// trust in one CA alone.
func startDockerBehind(t *testing.T, dir string, at *netns.Host, ca string) dockerBehind {
	t.Helper()
	c := startContainerd(t, dir, "containerd", "127.0.0.1:1") // dockerd pulls by itself
	root := filepath.Join(dir, "docker")
	socket := "unix://" + filepath.Join(root, "docker.sock")
	config := filepath.Join(root, "daemon.json") // not the machine's
	write(t, config, "{}\n")
	d := start(t, process.Options{
		Name: "dockerd", Path: "dockerd", Args: []string{
			"--config-file", config, "--data-root", filepath.Join(root, "data"), "--exec-root", filepath.Join(root, "exec"),
			"--pidfile", filepath.Join(root, "pid"), "--host", socket, "--containerd", c.socket,
			"--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false",
		},
		Env:   behind(t, ca),
		Start: at.Start,
	})
	line(t, d, "API listen on")
	return dockerBehind{socket, root}
}
