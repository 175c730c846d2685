package origin

import (
	"context"
	"net"
)

// SetOffline says whether upstreams may be contacted; at first they may. From
// the moment that it is told true no request leaves: every call fails with
// ErrOffline, those that are under way as well, and idle connections are
// closed. Told false, calls go out again. It does not block.
func (c *Client) SetOffline(offline bool) {
	c.mu.Lock()
	was := c.online.Err() != nil
	switch {
	case offline && !was:
		c.goOffline(ErrOffline)
	case !offline && was:
		c.online, c.goOffline = context.WithCancelCause(context.Background())
	}
	c.mu.Unlock()
	if offline {
		c.Close()
	}
	if offline != was {
		c.log.Info("upstreams are contacted, or not", "offline", offline)
	}
}

// Offline reports what SetOffline was told last.
func (c *Client) Offline() bool { return c.onlineNow().Err() != nil }

// onlineNow returns a context that ends when the client goes offline; it has
// ended if the client is.
func (c *Client) onlineNow() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.online
}

// whileOnline returns ctx's child that also ends, with the cause ErrOffline,
// when the client goes offline. end must be called.
func (c *Client) whileOnline(ctx context.Context) (child context.Context, end context.CancelCauseFunc) {
	online := c.onlineNow()
	child, cancel := context.WithCancelCause(ctx)
	if online.Err() != nil {
		cancel(ErrOffline) // now, and not a moment later in AfterFunc's goroutine
		return child, cancel
	}
	stop := context.AfterFunc(online, func() { cancel(ErrOffline) })
	return child, func(cause error) {
		stop()
		cancel(cause)
	}
}

// dialOnline keeps dial from connecting while the client is offline. A
// transport goes on with a dial when the request that wanted it has ended.
func (c *Client) dialOnline(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, end := c.whileOnline(ctx)
		defer end(nil)
		if context.Cause(ctx) == ErrOffline {
			return nil, ErrOffline
		}
		return dial(ctx, network, addr)
	}
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)
