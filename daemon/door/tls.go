package door

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// TLS says how a door proves what it is, and whom it believes. All are names of
// files in PEM, and are read again when they change.
type TLS struct {
	// Cert is the certificate, with those that lead to its CA, and Key its key.
	Cert, Key string
	// ClientCA are the CAs whose clients' certificates are believed. Empty: none
	// is asked for.
	ClientCA string
	// RequireClient turns away who has no certificate of ClientCA. Otherwise
	// the handler decides, which finds it in the request's TLS.
	RequireClient bool
}

// certificates is the configuration of TLS as of the files.
type certificates struct {
	// immutable
	from TLS
	log  *slog.Logger

	now atomic.Pointer[tls.Config]
}

// loadCertificates reads the files for the first time.
func loadCertificates(from TLS, log *slog.Logger) (*certificates, error) {
	c := &certificates{from: from, log: log}
	now, err := from.read()
	if err != nil {
		return nil, err
	}
	c.now.Store(now)
	return c, nil
}

// load reads the files again. If they are no good it keeps what it has.
func (c *certificates) load() {
	next, err := c.from.read()
	if err != nil {
		c.log.Warn("certificate was not read again, going on with the old one", "error", err)
		return
	}
	was := c.now.Swap(next)
	if !was.Certificates[0].Leaf.Equal(next.Certificates[0].Leaf) {
		c.log.Info("certificate was read again", "expires", next.Certificates[0].Leaf.NotAfter)
	}
}

// config is for tls.Config.GetConfigForClient. A client that resumes a session
// from before a change makes a full handshake: its ticket is not known.
func (c *certificates) config(*tls.ClientHelloInfo) (*tls.Config, error) { return c.now.Load(), nil }

// expires is when the certificate does.
func (c *certificates) expires() time.Time { return c.now.Load().Certificates[0].Leaf.NotAfter }

func (c *certificates) files() []string {
	files := []string{c.from.Cert, c.from.Key}
	if c.from.ClientCA != "" {
		files = append(files, c.from.ClientCA)
	}
	return files
}

func (t TLS) read() (*tls.Config, error) {
	if t.RequireClient && t.ClientCA == "" {
		return nil, errors.New("clients shall have certificates, and there is no CA to check them with: set clientCA")
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("%s with the key %s: %w", t.Cert, t.Key, err)
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2", "http/1.1"},
	}
	if t.ClientCA == "" {
		return cfg, nil
	}
	data, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, err
	}
	cfg.ClientCAs = x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s has no certificate in PEM", t.ClientCA)
	}
	cfg.ClientAuth = tls.VerifyClientCertIfGiven
	if t.RequireClient {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}
