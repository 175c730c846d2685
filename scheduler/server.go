package scheduler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/proto"
)

// goodbyeWithin bounds the sending of the last messages on a stream.
const goodbyeWithin = time.Second

// ServerConfig configures a Server.
type ServerConfig struct {
	Tuning   Tuning
	Log      *slog.Logger          // default: none
	Registry prometheus.Registerer // default: none
}

// Server is a scheduler as nodes reach it: it feeds a Book with what comes in
// on the nodes' control streams and sends what the Book decides.
type Server struct {
	// immutable
	log  *slog.Logger
	kick chan struct{} // the book's next alarm may have changed

	// mu protects the fields below.
	mu     sync.Mutex
	book   *Book
	conns  map[string]*serverConn
	closed bool
	wg     sync.WaitGroup
}

type serverConn struct {
	stream io.Closer
	box    *mailbox
}

// NewServer returns a Server without nodes.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{
		log:   cfg.Log,
		kick:  make(chan struct{}, 1),
		book:  NewBook(cfg.Tuning, rand.Uint64(), time.Now()),
		conns: make(map[string]*serverConn),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry != nil {
		s.register(cfg.Registry)
	}
	return s
}

func (s *Server) register(r prometheus.Registerer) {
	stat := func(name, help string, value func(*Book) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return value(s.book)
		}))
	}
	stat("shoal_scheduler_nodes", "Nodes connected to this scheduler.",
		func(b *Book) float64 { return float64(len(b.nodes)) })
	stat("shoal_scheduler_swarms", "Blobs that some node is fetching by this scheduler's leases.",
		func(b *Book) float64 { return float64(len(b.active)) })
	stat("shoal_scheduler_leases", "Leases in flight.",
		func(b *Book) float64 { return float64(len(b.leases)) })
	count := func(name, help string, value func(Counts) uint64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(value(s.book.Counts()))
		}))
	}
	count("shoal_scheduler_peer_leases_total", "Leases granted on peers.", func(c Counts) uint64 { return c.PeerLeases })
	count("shoal_scheduler_origin_leases_total", "Leases granted on origins.", func(c Counts) uint64 { return c.OriginLeases })
	count("shoal_scheduler_failed_leases_total", "Leases that nodes gave back.", func(c Counts) uint64 { return c.Failed })
	count("shoal_scheduler_expired_leases_total", "Leases that nobody ended in time.", func(c Counts) uint64 { return c.Expired })
}

// Run rings the Book's alarms until ctx ends. Then it says goodbye to all
// nodes, waits until their streams are done and returns nil.
func (s *Server) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s.mu.Lock()
		next := s.book.Next()
		s.mu.Unlock()
		wait := time.Hour
		if !next.IsZero() {
			wait = time.Until(next)
		}
		timer.Reset(max(wait, 0))
		select {
		case <-ctx.Done():
			s.shutDown()
			return nil
		case <-s.kick:
		case <-timer.C:
			s.act(func(b *Book, now time.Time) { b.Tick(now) })
		}
	}
}

func (s *Server) shutDown() {
	s.mu.Lock()
	s.closed = true
	for _, c := range s.conns {
		c.box.put(&proto.Bye{Reason: "the scheduler is shutting down"})
		c.box.close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// CandidatesChanged says that other members than before may own digests, so
// that for a moment reports are on their way from one to another.
func (s *Server) CandidatesChanged() {
	s.act(func(b *Book, now time.Time) { b.Unsettle(now) })
}

// act changes the book and sends what follows from it.
func (s *Server) act(change func(b *Book, now time.Time)) {
	s.mu.Lock()
	before := s.book.Next()
	change(s.book, time.Now())
	for _, l := range s.book.Letters() {
		if c := s.conns[l.To]; c != nil {
			c.box.put(l.Message)
		}
	}
	changed := !s.book.Next().Equal(before)
	s.mu.Unlock()
	if changed {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// Serve speaks with the node whose authenticated ID is id until its stream
// ends, which is no error, or breaks the protocol. It closes the stream.
func (s *Server) Serve(ctx context.Context, id string, stream io.ReadWriteCloser) error {
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	r := bufio.NewReaderSize(stream, 32<<10)
	m, buf, err := proto.ReadMessage(r, nil)
	if err != nil {
		return fmt.Errorf("reading the node's hello: %w", err)
	}
	hello, ok := m.(*proto.Hello)
	if !ok {
		return fmt.Errorf("node %s began with %T, not with hello", id, m)
	}
	version, err := settle(hello)
	if err != nil {
		_, _ = stream.Write(proto.AppendMessage(nil, &proto.Bye{Reason: err.Error()}))
		return err
	}
	hello.Node.ID = id // what it proved, not what it says
	c := &serverConn{stream: stream, box: newMailbox()}
	c.box.put(&proto.Welcome{Version: version})
	if !s.enter(hello.Node, c) {
		return errors.New("the scheduler is shutting down")
	}
	defer s.wg.Done()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.box.run(stream); err != nil {
			s.log.Debug("sending to a node failed", "node", hello.Node.Name, "peer", id, "error", err)
		}
		stream.Close()
	}()
	err = s.read(r, buf, id, c)
	s.leave(id, c)
	c.box.close()
	late := time.AfterFunc(goodbyeWithin, func() { stream.Close() })
	defer late.Stop()
	<-done
	return err
}

// settle picks the version to speak with a node (see proto/README.md).
func settle(h *proto.Hello) (int, error) {
	v := min(h.Max, proto.Version)
	if v < proto.MinVersion || v < h.Min {
		return 0, fmt.Errorf("node speaks versions %d to %d of the scheduling protocol and this scheduler %d to %d: "+
			"run releases that are closer together", h.Min, h.Max, proto.MinVersion, proto.Version)
	}
	return v, nil
}

func (s *Server) enter(m proto.Member, c *serverConn) bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	s.wg.Add(1)
	old := s.conns[m.ID]
	s.conns[m.ID] = c
	s.mu.Unlock()
	if old != nil {
		old.stream.Close() // the node has come again; the old stream is a remnant
	}
	s.act(func(b *Book, now time.Time) { b.Connect(now, m) })
	return true
}

func (s *Server) leave(id string, c *serverConn) {
	s.mu.Lock()
	mine := s.conns[id] == c
	if mine {
		delete(s.conns, id)
	}
	s.mu.Unlock()
	if mine {
		s.act(func(b *Book, now time.Time) { b.Disconnect(now, id) })
	}
}

func (s *Server) read(r io.Reader, buf []byte, id string, c *serverConn) error {
	for {
		m, grown, err := proto.ReadMessage(r, buf)
		buf = grown
		switch {
		case errors.Is(err, proto.ErrFrame):
			c.box.put(&proto.Bye{Reason: err.Error()})
			return err
		case err != nil:
			return nil // the node is gone, however it went
		}
		switch m := m.(type) {
		case *proto.Ping:
			c.box.put(&proto.Pong{Seq: m.Seq})
		case *proto.Bye:
			return nil
		default:
			s.act(func(b *Book, now time.Time) { b.Handle(now, id, m) })
		}
	}
}

// Drop forgets a node of which the gossip says that it is dead, without
// waiting for its stream to notice.
func (s *Server) Drop(id string) {
	s.mu.Lock()
	c := s.conns[id]
	s.mu.Unlock()
	if c != nil {
		c.stream.Close()
		s.leave(id, c)
	}
}

// Load returns how many blobs are being fetched by this scheduler's leases and
// how many nodes are connected.
func (s *Server) Load() (swarms, nodes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.book.active), len(s.book.nodes)
}
