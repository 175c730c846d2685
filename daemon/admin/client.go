package admin

import (
	"bytes"
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
	"strings"
	"syscall"
	"time"
)

// maxAnswer bounds in bytes what a client reads. Ten thousand members take
// about two million, and a job of ten images on a thousand nodes three.
const maxAnswer = 32 << 20

// maxFailure bounds in bytes what a client reads of an error.
const maxFailure = 64 << 10

// A Client asks one node.
type Client struct {
	addr string // as it was given, for a person
	base string // of URLs
	http *http.Client
	// plain says that all that is sent can be read on the way.
	plain bool
	// token is sent with each request, if it is not "". wrong is why nothing can
	// be sent.
	token string
	wrong error
}

// NewClient returns a client of the node whose admin door is at addr: host:port,
// https://host:port where it has a certificate, or unix:/path. An addr without a
// host, as listeners are configured, is this machine.
func NewClient(addr string) *Client {
	transport := &http.Transport{
		DialContext:       (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		DisableKeepAlives: true, // a command asks once
		// Bodies go when the node wants them: it always says so.
		ExpectContinueTimeout: time.Minute,
		TLSHandshakeTimeout:   10 * time.Second,
	}
	c := &Client{addr: addr, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // none is meant for us
	}}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		c.base = "http://localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		return c
	}
	host, secure := strings.CutPrefix(addr, "https://")
	host = strings.TrimPrefix(host, "http://")
	if strings.HasPrefix(host, ":") {
		host = "127.0.0.1" + host
	}
	c.base, c.plain = "http://"+host, !secure && !loopback(host)
	if secure {
		c.base = "https://" + host
	}
	return c
}

// loopback reports whether host:port is on this machine.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// Proof is how a client shows who it is, and whom it believes. Each is the name
// of a file.
type Proof struct {
	// Token has a token of the node's.
	Token string
	// CA has certificates to trust beside the system's, in PEM.
	CA string
	// Cert and Key are a certificate that the node knows the CA of.
	Cert, Key string
}

// With makes c show p, and returns c. What is wrong with the files, every
// request says.
func (c *Client) With(p Proof) *Client {
	c.wrong = c.prove(p)
	return c
}

func (c *Client) prove(p Proof) error {
	if p.Token != "" {
		if c.plain {
			return fmt.Errorf("a token is not sent to %s over plain HTTP, where others can read it; write https://%s, and give the node admin.tls", c.addr, strings.TrimPrefix(c.addr, "http://"))
		}
		data, err := os.ReadFile(p.Token)
		if err != nil {
			return fmt.Errorf("token for %s: %w", c.addr, err)
		}
		if c.token = strings.TrimSpace(string(data)); c.token == "" || strings.ContainsAny(c.token, "\r\n") {
			return fmt.Errorf("token for %s: %s does not have one line", c.addr, p.Token)
		}
	}
	if (p.Cert == "") != (p.Key == "") {
		return errors.New("a certificate and its key go together; give both")
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if p.CA != "" {
		data, err := os.ReadFile(p.CA)
		if err != nil {
			return fmt.Errorf("CA of %s: %w", c.addr, err)
		}
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			cfg.RootCAs = x509.NewCertPool() // there are none
		}
		if !cfg.RootCAs.AppendCertsFromPEM(data) {
			return fmt.Errorf("CA of %s: %s has no certificate in PEM", c.addr, p.CA)
		}
	}
	if p.Cert != "" {
		pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
		if err != nil {
			return fmt.Errorf("certificate for %s: %w", c.addr, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	c.http.Transport.(*http.Transport).TLSClientConfig = cfg
	return nil
}

// Through makes c open its connections with dial, as for a node in a network
// of its own, and returns c. Nil changes nothing.
func (c *Client) Through(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Client {
	if dial != nil {
		c.http.Transport.(*http.Transport).DialContext = dial
	}
	return c
}

// Status returns what the node is doing. It blocks until the node has answered
// or ctx ends.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.get(ctx, "/v1/status", &s)
	return s, err
}

func (c *Client) get(ctx context.Context, path string, v any) error {
	return c.call(ctx, http.MethodGet, path, nil, v)
}

// call sends in as JSON, unless it is nil, and reads the answer into out,
// unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("ask %s: %s %s: %w", c.addr, method, path, err)
		}
		body = bytes.NewReader(data)
	}
	resp, err := c.send(ctx, method, path, jsonType, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // read to its end or of no use
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("ask %s: %s %s: %w; is this the address of admin.listen?", c.addr, method, path, err)
	}
	return nil
}

// send returns the answer to a request if it is a success. The caller closes
// its body.
func (c *Client) send(ctx context.Context, method, path, contentType string, body io.Reader, change ...func(*http.Request)) (*http.Response, error) {
	if c.wrong != nil {
		return nil, c.wrong
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("admin address %q: %w; write host:port, https://host:port or unix:/path", c.addr, err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if method != http.MethodGet {
		req.Header.Set("Content-Type", contentType)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT):
		return nil, fmt.Errorf("no shoal answers at %s: start one with `shoal daemon`, or say where its admin.listen is", c.addr)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("ask %s: %w; the socket is for its owner and group", c.addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.addr, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()                                      // of no more use
	said, _ := io.ReadAll(io.LimitReader(resp.Body, maxFailure)) // what there is of it
	var f Failure
	if json.Unmarshal(said, &f) == nil && f.Error != "" {
		return nil, &Refusal{Status: resp.StatusCode, Text: f.Error}
	}
	if bytes.Contains(said, []byte("HTTPS server")) { // net/http's own words
		return nil, fmt.Errorf("the node at %s speaks HTTPS: write https://%[1]s", c.addr)
	}
	return nil, fmt.Errorf("ask %s: %s %s answered %s; is this the address of admin.listen?", c.addr, method, path, resp.Status)
}

// A Refusal is the node's own word on why it did not do what it was asked.
type Refusal struct {
	Status int // of HTTP
	Text   string
}

func (r *Refusal) Error() string { return r.Text }
