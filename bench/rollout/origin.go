package rollout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/proto"
)

// registryAt is where the registry listens: it has the loopback to itself.
const registryAt = "127.0.0.1:5000"

// registries are the names of the distribution project's registry, as it
// installs itself and as Debian has it.
var registries = []string{"registry", "docker-registry"}

// findRegistry returns the path of the registry program.
func findRegistry(name string) (string, error) {
	const get = "`apt-get install docker-registry` has one on Debian, `go install github.com/distribution/distribution/v3/cmd/registry@latest` elsewhere; --in-process needs none"
	if name != "" {
		found, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("--registry: %w: %s", err, get)
		}
		return found, nil
	}
	for _, r := range registries {
		if found, err := exec.LookPath(r); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("neither %s is in PATH, and a rollout needs a registry: %s", strings.Join(registries, " nor "), get)
}

// startRegistry starts a registry with its content below dir, and returns once
// it listens.
func startRegistry(ctx context.Context, program, dir string, start func(*exec.Cmd) error) (*process.Process, error) {
	const config = `version: 0.1
log: {level: info}
storage:
  filesystem: {rootdirectory: %q}
http: {addr: %q}
`
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, filepath.Join(dir, "content"), registryAt), 0o644); err != nil {
		return nil, err
	}
	// It makes a buffer of 4 MiB per request and collects garbage for nearly each,
	// on the cores that the nodes are to have: a fiftieth of all CPU time.
	env := []string{"GOGC=400"}
	p, err := process.Start(process.Options{Name: "registry", Path: program, Args: []string{"serve", file}, Env: env, Start: start})
	if err != nil {
		return nil, err
	}
	if _, err := p.Line(ctx, func(line string) bool { return strings.Contains(line, "listening on") }); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// An originServer is what the fleet knows as the registry. It counts.
type originServer struct {
	handler http.Handler
	layers  map[string]bool // digests of what counts
	limit   *rate.Limiter   // of what leaves; nil: none
	sent    atomic.Int64    // bytes of layers that left

	server *http.Server
	done   sync.WaitGroup
	err    error // of Serve; after done
}

// serve starts to serve at ln, until close.
func serve(ln net.Listener, h http.Handler, img *image, limit *rate.Limiter, log *slog.Logger) *originServer {
	s := &originServer{handler: h, limit: limit, layers: make(map[string]bool, len(img.layers))}
	for _, l := range img.layers {
		s.layers[l.Digest.String()] = true
	}
	s.server = &http.Server{Handler: s, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	s.done.Go(func() { s.err = s.server.Serve(ln) })
	return s
}

func (s *originServer) close() error {
	err := s.server.Close()
	s.done.Wait()
	if !errors.Is(s.err, http.ErrServerClosed) {
		err = errors.Join(err, s.err)
	}
	return err
}

// ServeHTTP counts what leaves of a layer.
func (s *originServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.layers[path.Base(r.URL.Path)] {
		w = &countingWriter{ResponseWriter: w, ctx: r.Context(), limit: s.limit, sent: &s.sent}
	}
	s.handler.ServeHTTP(w, r)
}

// A countingWriter counts the bytes of a body, and holds them back to a limit.
// It hides io.ReaderFrom, so that none goes past it.
type countingWriter struct {
	http.ResponseWriter
	ctx   context.Context // of the request
	limit *rate.Limiter
	sent  *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := w.limit.Wait(w.ctx, int64(len(p)-done))
		if err != nil {
			return done, err
		}
		k, err := w.ResponseWriter.Write(p[done : done+int(n)])
		done += k
		w.sent.Add(int64(k))
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Unwrap is for http.ResponseController.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// dialer opens connections from where a host is.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// newTransport returns a transport of one client, which shares no connection
// with others and goes through no proxy.
func newTransport(dial dialer) *http.Transport {
	return &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 64, ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10, DisableCompression: true}
}

// newProxy returns a handler that passes everything to the registry, and a
// function that ends its idle connections.
func newProxy(dial dialer, log *slog.Logger) (h http.Handler, closeIdle func()) {
	t := newTransport(dial)
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: registryAt})
			r.Out.Host = r.In.Host // its redirects are for whoever asked
		},
		Transport: t, BufferPool: &buffers{},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return p, t.CloseIdleConnections
}

// buffers are long enough that a copy is few system calls.
type buffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 256<<10)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// fileOrigin serves an image from the files that write has written, as far as a
// pull needs it.
func fileOrigin(img *image) http.Handler {
	mux := http.NewServeMux()
	manifest := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", proto.DigestOf(img.manifest).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(img.manifest)))
		_, _ = w.Write(img.manifest) // the client went away
	}
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/"+repository+"/manifests/"+tag, manifest)
	mux.HandleFunc("GET /v2/"+repository+"/manifests/"+proto.DigestOf(img.manifest).String(), manifest)
	blobs := "/v2/" + repository + "/blobs/"
	files := http.StripPrefix(blobs, http.FileServerFS(os.DirFS(img.dir)))
	mux.HandleFunc("GET "+blobs, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream") // or it would be guessed from the bytes
		files.ServeHTTP(w, r)
	})
	return mux
}
