package admin

import (
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
// about two million.
const maxAnswer = 32 << 20

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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addr+path, nil)
	if err != nil {
		return fmt.Errorf("admin address %q: %w; write host:port", c.addr, err)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no shoal answers at %s: start one with `shoal daemon`, or say where its admin.listen is", c.addr)
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", c.addr, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s: GET %s answered %s; is this the address of admin.listen?", c.addr, path, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("ask %s: GET %s: %w; is this the address of admin.listen?", c.addr, path, err)
	}
	return nil
}
