// Command registryd is the demo's origin: a real registry, distribution v3 with
// its content in a directory, that counts what it sends.
//
// Its first line of output is the address that it listens on. GET /count
// answers with the counts so far as JSON; DELETE /count sets them to zero. It
// ends on SIGTERM or SIGINT, after the requests that are under way.
//
// # Why
//
// It is a program of its own, so that the shipped binary links no registry. It
// is not distribution's own command: that one links the clients of three
// clouds, and cannot say how many bytes left it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
)

// grace is how long requests that are under way may take after SIGTERM.
const grace = 5 * time.Second

func main() {
	listen := flag.String("listen", "127.0.0.1:5000", "address to serve on; port 0 takes a free one")
	dir := flag.String("dir", "", "directory for the content; made if it is not there")
	limit := flag.Int64("rate", 0, "bytes a second that all blobs together may take; 0: no limit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *listen, *dir, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "registryd:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. It writes the address to out first.
func run(ctx context.Context, out io.Writer, listen, dir string, limit int64) error {
	if dir == "" {
		return errors.New("say where to keep the content: -dir DIRECTORY")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	reg := registry.New(registry.Options{Dir: dir})
	defer reg.Close()
	reg.SetFaults(registry.Faults{Rate: limit})
	mux := http.NewServeMux()
	mux.Handle("/v2/", reg)
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reg.Count())
	})
	mux.HandleFunc("DELETE /count", func(w http.ResponseWriter, _ *http.Request) {
		reg.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	fmt.Fprintln(out, l.Addr())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := server.Shutdown(ending); err != nil {
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
