package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
	addr string
	http *http.Client
}

// NewClient returns a client of the node whose admin door is at addr,
// host:port. An addr without a host, as listeners are configured, is this
// machine.
func NewClient(addr string) *Client {
	if strings.HasPrefix(addr, ":") {
		addr = "127.0.0.1" + addr
	}
	return &Client{addr: addr, http: &http.Client{Transport: &http.Transport{
		DialContext:       (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		DisableKeepAlives: true, // a command asks once
		// Bodies go when the node wants them: it always says so.
		ExpectContinueTimeout: time.Minute,
	}}}
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
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.addr+path, body)
	if err != nil {
		return nil, fmt.Errorf("admin address %q: %w; write host:port", c.addr, err)
	}
	if method != http.MethodGet {
		req.Header.Set("Content-Type", contentType)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("no shoal answers at %s: start one with `shoal daemon`, or say where its admin.listen is", c.addr)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.addr, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close() // of no more use
	var f Failure
	if json.NewDecoder(io.LimitReader(resp.Body, maxFailure)).Decode(&f) == nil && f.Error != "" {
		return nil, &Refusal{Status: resp.StatusCode, Text: f.Error}
	}
	return nil, fmt.Errorf("ask %s: %s %s answered %s; is this the address of admin.listen?", c.addr, method, path, resp.Status)
}

// A Refusal is the node's own word on why it did not do what it was asked.
type Refusal struct {
	Status int // of HTTP
	Text   string
}

func (r *Refusal) Error() string { return r.Text }
