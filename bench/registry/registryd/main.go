// Command registryd is the demo's origin: a real registry, distribution v3 with
// its content in a directory, that counts what it sends.
//
// Its first line of output is the address that it listens on. GET /count
// answers with the counts so far as JSON; DELETE /count sets them to zero. It
// ends on SIGTERM or SIGINT, after the requests that are under way.
//
// With -login it wants a login, in one of distribution's own ways, and with -tls
// it speaks TLS with a certificate of a CA that it makes at its start. The counts
// are then behind TLS too, and never behind the login.
//
// # Why
//
// It is a program of its own, so that the shipped binary links no registry. It
// is not distribution's own command: that one links the clients of three
// clouds, and cannot say how many bytes left it.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/bench/registry"
)

// grace is how long requests that are under way may take after SIGTERM.
const grace = 5 * time.Second

func main() {
	listen := flag.String("listen", "127.0.0.1:5000", "address to serve on; port 0 takes a free one")
	var s settings
	flag.StringVar(&s.Dir, "dir", "", "directory for the content; made if it is not there")
	flag.Int64Var(&s.rate, "rate", 0, "bytes a second that all blobs together may take; 0: no limit")
	flag.StringVar(&s.login, "login", "", "how to log in: basic, or token for a token server at /token; nothing: nobody has to")
	flag.Var(&s, "user", "NAME:PASSWORD of somebody who may log in; may be repeated")
	flag.Func("private", "repository that the token server gives nobody without a login; may be repeated", func(name string) error {
		s.Private = append(s.Private, name)
		return nil
	})
	flag.DurationVar(&s.TokenLife, "token-life", 0, "how long tokens live, in whole seconds; 0: 5 minutes")
	flag.StringVar(&s.ca, "tls", "", "speak TLS, and write the CA's certificate to this file")
	flag.StringVar(&s.hosts, "hosts", "127.0.0.1,localhost", "names and addresses in the certificate, with commas between")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *listen, s); err != nil {
		fmt.Fprintln(os.Stderr, "registryd:", err)
		os.Exit(1)
	}
}

// settings say what kind of registry to run.
type settings struct {
	registry.Options
	rate  int64
	login string
	ca    string // file; empty: no TLS
	hosts string
}

// Set and String make settings the flag.Value of -user.
func (s *settings) Set(user string) error {
	name, password, ok := strings.Cut(user, ":")
	if !ok || name == "" || password == "" {
		return errors.New("write it as NAME:PASSWORD")
	}
	if s.Users == nil {
		s.Users = make(map[string]string)
	}
	s.Users[name] = password
	return nil
}

func (s *settings) String() string { return "" }

// complete checks the settings and makes what they need.
func (s *settings) complete() error {
	if s.Dir == "" {
		return errors.New("say where to keep the content: -dir DIRECTORY")
	}
	how, ok := map[string]registry.Auth{"": registry.AuthNone, "basic": registry.AuthBasic, "token": registry.AuthToken}[s.login]
	if !ok {
		return fmt.Errorf("-login %s: it is basic or token", s.login)
	}
	s.Login = how
	return os.MkdirAll(s.Dir, 0o755)
}

// secured returns l, with TLS if that is wanted. It writes the CA out before.
func (s *settings) secured(l net.Listener) (net.Listener, error) {
	if s.ca == "" {
		return l, nil
	}
	ca, err := registry.NewCA()
	if err != nil {
		return nil, err
	}
	config, err := ca.TLS(strings.Split(s.hosts, ",")...)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.ca, ca.PEM, 0o644); err != nil {
		return nil, err
	}
	return tls.NewListener(l, config), nil
}

// run serves until ctx ends. It writes the address to out first.
func run(ctx context.Context, out io.Writer, listen string, s settings) error {
	if err := s.complete(); err != nil {
		return err
	}
	plain, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	l, err := s.secured(plain)
	if err != nil {
		_ = plain.Close()
		return err
	}
	reg := registry.New(s.Options)
	defer reg.Close()
	reg.SetFaults(registry.Faults{Rate: s.rate})
	mux := http.NewServeMux()
	mux.Handle("/v2/", reg)
	mux.Handle("/token", reg)
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
