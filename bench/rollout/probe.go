package rollout

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

// probeFor is how long probe sends.
const probeFor = 300 * time.Millisecond

// probe sends bytes over loopback as a rollout does, from a peer to a daemon,
// which hashes them twice, and on to a client, which compares them. It returns the
// seconds of CPU time that a byte takes, and how many cores other processes kept
// busy meanwhile.
func probe(ctx context.Context, encrypted bool) (cost, others float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	peer, daemon, err := pair(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer peer.Close()
	defer daemon.Close()
	mirror, client, err := pair(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer mirror.Close()
	defer client.Close()
	if encrypted {
		config, err := selfSigned()
		if err != nil {
			return 0, 0, err
		}
		peer = tls.Server(peer, config)
		daemon = tls.Client(daemon, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // both ends are here
	}
	before, busy := ownCPU(), busyCPU()
	start := time.Now()
	var n int64
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { defer closeWrite(peer); return pour(peer, start.Add(probeFor)) })
	g.Go(func() error {
		defer closeWrite(mirror)
		_, err := io.CopyBuffer(io.MultiWriter(sha256.New(), blake3.New(), mirror), plain{daemon}, make([]byte, 256<<10))
		return err
	})
	g.Go(func() error {
		n, err = io.CopyBuffer(zeros(make([]byte, 256<<10)), plain{client}, make([]byte, 256<<10))
		return err
	})
	stop := context.AfterFunc(ctx, func() { peer.Close(); daemon.Close(); mirror.Close(); client.Close() })
	defer stop()
	if err := g.Wait(); err != nil {
		return 0, 0, errors.Join(context.Cause(ctx), err)
	}
	took, own := time.Since(start).Seconds(), ownCPU()-before
	if busy > 0 {
		others = max((busyCPU()-busy-own)/took, 0)
	}
	return own / float64(max(n, 1)), others, nil
}

// plain hides all but Read, so that nothing is copied inside the kernel.
type plain struct{ io.Reader }

// zeros are what pour writes. They are written to as a comparison is, at most as
// many at a time as there are.
type zeros []byte

// Write implements io.Writer.
func (z zeros) Write(p []byte) (int, error) {
	if !bytes.Equal(p, z[:len(p)]) {
		return 0, errBytes
	}
	return len(p), nil
}

// pour writes until a time.
func pour(w io.Writer, until time.Time) error {
	buf := make([]byte, 256<<10)
	for time.Now().Before(until) {
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func closeWrite(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // whoever reads finds out
	}
}

// pair returns both ends of a connection over loopback.
func pair(ctx context.Context) (near, far net.Conn, err error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	far, err = new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	near, err = ln.Accept()
	if err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	return near, far, nil
}

// selfSigned returns what one end of a TLS connection needs.
func selfSigned() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}, nil
}

// ownCPU returns the seconds of CPU time that this process has used.
func ownCPU() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// busyCPU returns the seconds of CPU time that all processes together have
// used, or 0 if that is not known: the first line of /proc/stat (proc(5)).
func busyCPU() float64 {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	words := bytes.Fields(line)
	if len(words) < 9 {
		return 0
	}
	var sum int64
	for i, w := range words[1:9] { // user nice system idle iowait irq softirq steal
		n, _ := strconv.ParseInt(string(w), 10, 64)
		if i != 3 && i != 4 {
			sum += n
		}
	}
	return float64(sum) / ticks
}
