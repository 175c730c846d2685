package proxy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// caLife is how long a CA lives: every machine has to be told of the next.
	caLife = 5 * 365 * 24 * time.Hour
	// leafLife is how long a host's certificate lives. A new one costs nothing.
	leafLife = 7 * 24 * time.Hour
	// leafMargin is how long before its end a certificate is replaced, and how
	// far a client's clock may be behind.
	leafMargin = 24 * time.Hour
	// maxLeaves is how many certificates are remembered.
	maxLeaves = 1024
)

// A CA signs the certificates that clients of intercepted hosts see.
type CA struct {
	chain   [][]byte // its own certificate first
	cert    *x509.Certificate
	key     crypto.Signer
	keyMode fs.FileMode // of the key's file
	keyFile string
}

// InitOptions say which CA is made, and where.
type InitOptions struct {
	// CertFile and KeyFile are the files that are written, in PEM. Folders that
	// are missing are made.
	CertFile, KeyFile string
	// Hosts are what the CA can be used for: hosts, with ports or without, "*."
	// and a domain, or "*" for any host at all.
	Hosts []string
	// Node is the name of the machine, for people who look at the certificate.
	Node string
	// Force replaces what there is.
	Force bool
}

// InitCA makes a CA. The key is readable by the user alone.
func InitCA(o InitOptions) (*CA, error) {
	if !o.Force {
		for _, file := range []string{o.CertFile, o.KeyFile} {
			if _, err := os.Lstat(file); err == nil {
				return nil, fmt.Errorf("%s is there already, and what trusts it would not trust another: leave it, or replace it with --force", file)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	template, err := caTemplate(o)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	// The key first: a certificate is not without its key then.
	if err := writeFile(o.KeyFile, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		return nil, err
	}
	if err := writeFile(o.CertFile, 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
		return nil, err
	}
	return LoadCA(o.CertFile, o.KeyFile)
}

func caTemplate(o InitOptions) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	name := "Shoal proxy CA"
	if o.Node != "" {
		name += " of " + o.Node
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// With a part of the number, so that stores tell two CAs of one node apart.
		Subject:   pkix.Name{Organization: []string{"Shoal"}, CommonName: fmt.Sprintf("%.40s %08x", name, serial.Uint64()>>32)},
		NotBefore: now.Add(-leafMargin), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		// Neither mail nor code can be signed with a key that was stolen.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	return template, constrain(template, o.Hosts)
}

// constrain limits a CA to hosts, unless "*" is one of them.
func constrain(ca *x509.Certificate, hosts []string) error {
	if len(hosts) == 0 {
		return errors.New("no hosts: name those that the proxy intercepts, or * for a CA that can be any host at all")
	}
	var addrs []*net.IPNet
	for _, host := range hosts {
		if host == "*" {
			continue
		}
		if err := CheckPattern(host); err != nil {
			return err
		}
		t, err := parseTarget(strings.TrimPrefix(host, "*."), 443)
		if err != nil {
			return err
		}
		if addr, err := netip.ParseAddr(t.host); err == nil {
			addrs = append(addrs, &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())})
		} else if !slices.Contains(ca.PermittedDNSDomains, t.host) {
			ca.PermittedDNSDomains = append(ca.PermittedDNSDomains, t.host)
		}
	}
	if slices.Contains(hosts, "*") {
		ca.PermittedDNSDomains = nil
		return nil
	}
	ca.PermittedDNSDomainsCritical = true
	// A kind of name that no constraint speaks of is not constrained.
	if len(ca.PermittedDNSDomains) == 0 {
		ca.PermittedDNSDomains = []string{"invalid"} // which nobody has (RFC 6761)
	}
	if ca.PermittedIPRanges = addrs; len(addrs) == 0 {
		ca.ExcludedIPRanges = []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	}
	return nil
}

// writeFile writes a file as a whole or not at all.
func writeFile(name string, mode fs.FileMode, data []byte) (err error) {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".ca-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// LoadCA reads a CA from its two files.
func LoadCA(certFile, keyFile string) (*CA, error) {
	certs, err := os.ReadFile(certFile)
	if err != nil {
		return nil, missing(err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, missing(err)
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certs, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are not a CA and its key: %w", certFile, keyFile, err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA || pair.Leaf.KeyUsage != 0 && pair.Leaf.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("%s is not the certificate of a CA: make one with `shoal ca init`", certFile)
	}
	return &CA{chain: pair.Certificate, cert: pair.Leaf, key: signer, keyMode: info.Mode().Perm(), keyFile: keyFile}, nil
}

func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: make a CA with `shoal ca init`", err)
	}
	return err
}

// Name is the CA's name as stores of certificates show it.
func (c *CA) Name() string { return c.cert.Subject.CommonName }

// Expires returns when the CA ends.
func (c *CA) Expires() time.Time { return c.cert.NotAfter }

// Fingerprint returns the SHA-256 of the certificate, in hexadecimal digits.
func (c *CA) Fingerprint() string {
	sum := sha256.Sum256(c.chain[0])
	return hex.EncodeToString(sum[:])
}

// Hosts returns what the CA is limited to: hosts, each with all that are below
// it, and networks. Empty: it can be any host at all.
func (c *CA) Hosts() []string {
	hosts := slices.Clone(c.cert.PermittedDNSDomains)
	for _, n := range c.cert.PermittedIPRanges {
		hosts = append(hosts, n.String())
	}
	return slices.DeleteFunc(hosts, func(h string) bool { return h == "invalid" })
}

// Problems returns what is wrong with the CA at a time, or will be soon.
func (c *CA) Problems(now time.Time) []string {
	var out []string
	const again = "make a new one with `shoal ca init --force`, and let the runtimes trust it"
	switch {
	case now.After(c.cert.NotAfter):
		out = append(out, fmt.Sprintf("it has ended on %s: %s", c.cert.NotAfter.Format(time.DateOnly), again))
	case now.Before(c.cert.NotBefore):
		out = append(out, fmt.Sprintf("it begins on %s: is the clock right?", c.cert.NotBefore.Format(time.DateOnly)))
	case c.cert.NotAfter.Sub(now) < expirySoon:
		out = append(out, fmt.Sprintf("it ends on %s: %s", c.cert.NotAfter.Format(time.DateOnly), again))
	}
	if c.keyMode&0o007 != 0 && runtime.GOOS != "windows" {
		out = append(out, fmt.Sprintf("every user of this machine can read its key: chmod 600 %s", c.keyFile))
	}
	return out
}

// covers returns why the CA cannot sign for a host that clients would then
// believe, or nil.
func (c *CA) covers(host string) error {
	_, err := c.sign(host, time.Now())
	return err
}

// sign makes a certificate for a host that clients which trust the CA believe.
func (c *CA) sign(host string, now time.Time) (*tls.Certificate, error) {
	cert, err := c.make(host, now)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.cert)
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: now}); err != nil {
		return nil, err
	}
	return cert, nil
}

// make makes a certificate for a host.
func (c *CA) make(host string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Shoal"}},
		NotBefore: now.Add(-leafMargin), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		template.IPAddresses = []net.IP{addr.AsSlice()}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	chain := append([][]byte{der}, c.chain...)
	if bytes.Equal(c.cert.RawSubject, c.cert.RawIssuer) {
		chain = chain[:1] // who trusts a root has it
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

// leaves are the certificates that were made.
type leaves struct {
	ca *CA // immutable

	mu     sync.Mutex // protects the field below
	byHost map[string]*tls.Certificate
}

func newLeaves(ca *CA) *leaves { return &leaves{ca: ca, byHost: make(map[string]*tls.Certificate)} }

// get returns the certificate of a host. It is made under the lock: that takes
// less than a millisecond, and two clients that come at once get the same.
func (s *leaves) get(host string) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if leaf := s.byHost[host]; leaf != nil && leaf.Leaf.NotAfter.Sub(now) > leafMargin {
		return leaf, nil
	}
	leaf, err := s.ca.sign(host, now)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", host, err)
	}
	if _, replaces := s.byHost[host]; !replaces && len(s.byHost) >= maxLeaves {
		for any := range s.byHost { // in no order
			delete(s.byHost, any)
			break
		}
	}
	s.byHost[host] = leaf
	return leaf, nil
}
