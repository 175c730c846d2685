package rollout

import (
	"context"
	"errors"
	"net"
	"path/filepath"

	"github.com/shoal-project/shoal/bench/fleet"
	"github.com/shoal-project/shoal/bench/report"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/rate"
)

// inProcess is a bed of daemons in this process, with limits for links.
type inProcess struct {
	o      Options
	origin *originServer
	url    string // of the origin
	fleet  *fleet.Fleet
}

// startInProcess starts the origin and the fleet.
func startInProcess(ctx context.Context, o Options, dir string, img *image) (_ *inProcess, err error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &inProcess{o: o, url: "http://" + ln.Addr().String(), origin: serve(ln, fileOrigin(img), img, rate.New(rate.Rate(o.OriginRate)), o.Log)}
	if o.Mode == report.ModeDirect {
		return b, nil
	}
	places := o.places()
	b.fleet, err = fleet.Start(ctx, fleet.Options{
		Nodes: o.Nodes, Scheduler: o.Mode == report.ModeShoal, Origin: b.url, Dir: filepath.Join(dir, "fleet"), Log: o.Log,
		Configure: func(i int, c *daemon.Config) {
			at := place{rate: o.SeedRate}
			if i >= 0 {
				at = places[i]
			}
			c.Zone, c.Peer.Security = o.zoneName(at.zone), o.Security
			c.Limits.UploadRate, c.Limits.DownloadRate = rate.Rate(at.rate), rate.Rate(at.rate)
		},
	})
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *inProcess) client(i int) (string, dialer) {
	if b.fleet == nil {
		return b.url, limited(rate.New(rate.Rate(b.o.places()[i].rate)))
	}
	return b.fleet.Nodes[i].MirrorURL(), new(net.Dialer).DialContext
}

func (b *inProcess) members() []member {
	if b.fleet == nil {
		return nil
	}
	var out []member
	for _, n := range b.fleet.Nodes {
		out = append(out, resident{n})
	}
	if b.fleet.Scheduler != nil {
		out = append(out, resident{b.fleet.Scheduler})
	}
	return out
}

func (b *inProcess) sent() int64 { return b.origin.sent.Load() }

// inject is not called: Validate lets no fault through.
func (b *inProcess) inject(context.Context, Fault, bool) error { return errors.ErrUnsupported }

func (b *inProcess) close() error {
	var err error
	if b.fleet != nil {
		err = b.fleet.Stop()
	}
	return errors.Join(err, b.origin.close())
}

// A resident is a member in this process.
type resident struct{ *fleet.Node }

func (r resident) name() string { return r.Config.Name }

func (r resident) status(context.Context) (admin.Status, error) { return r.Status(), nil }

// figures has no usage: it is the process's, and so everybody's.
func (r resident) figures(context.Context) figures { return figures{bytes: r.Status().Bytes} }

func (r resident) broken() error { return nil }

// limited returns a dialer of connections that together receive as fast as l
// allows: the link of a client that has no daemon with limits of its own.
func limited(l *rate.Limiter) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return limitedConn{c, l}, nil
	}
}

type limitedConn struct {
	net.Conn
	limit *rate.Limiter
}

// Read waits after it has read: how much comes is not known before.
func (c limitedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for rest := int64(n); rest > 0; {
		k, _ := c.limit.Wait(context.Background(), rest) // fails with its context only
		rest -= k
	}
	return n, err
}
