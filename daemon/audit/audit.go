package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/DeRuina/timberjack"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// queue is how many records wait for the disk at most.
	queue = 4096
	// maxField is the most bytes that a text of a record has: clients choose
	// some of them.
	maxField = 1024
)

// Config is what a Log needs.
type Config struct {
	// File is where the records go; "" is nowhere, they are only counted.
	// Those that were rotated away are beside it, with the time in their name.
	File string
	// MaxSize is the number of MiB after which a new file is begun. 0 is 100.
	MaxSize int
	// KeepDays is after how many days a rotated file is removed. A file has the
	// records of at most one day, so that none is older than one day more than
	// this. 0 keeps all.
	KeepDays int
	// Node is the name of this node, which is in each record.
	Node string
	// Log gets a line when records are lost, and when that is over. Nil is
	// silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil: none.
	Registry prometheus.Registerer
}

// A Log writes records to a file. Its methods may be called concurrently.
type Log struct {
	// immutable
	node    string
	log     *slog.Logger
	out     io.Writer // nil without a file
	file    *timberjack.Logger
	records *prometheus.CounterVec
	dropped prometheus.Counter
	wg      sync.WaitGroup

	mu     sync.RWMutex // protects the fields below
	queue  chan Record  // closed once closed is true
	closed bool
}

// Open opens or makes the file, and starts to write. Close ends that.
func Open(cfg Config) (*Log, error) {
	l := newLog(cfg)
	if cfg.File == "" {
		return l, nil
	}
	file := &timberjack.Logger{
		Filename: cfg.File, FileMode: 0o600, MaxAge: cfg.KeepDays,
		MaxSize: cfg.MaxSize, RotateAt: []string{"00:00"},
	}
	old, err := prepare(cfg.File, time.Now())
	if err == nil && old {
		err = file.Rotate()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit log: %w", err), file.Close())
	}
	l.file = file
	l.start(file)
	return l, nil
}

// newLog returns a Log that only counts.
func newLog(cfg Config) *Log {
	l := &Log{node: cfg.Node, log: cfg.Log}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	f := promauto.With(cfg.Registry)
	l.records = f.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_audit_records_total",
		Help: "Records of pulls that were admitted or denied, or that would have been denied if the policy did more than audit, whether or not they could be written.",
	}, []string{"verdict"})
	l.dropped = f.NewCounter(prometheus.CounterOpts{
		Name: "shoal_audit_dropped_total",
		Help: "Records that are not in the audit log, since the disk was full or too slow.",
	})
	for _, v := range []string{Admitted, Denied, WouldDeny} {
		l.records.WithLabelValues(v)
	}
	return l
}

// start begins to write to out.
func (l *Log) start(out io.Writer) {
	l.out = out
	l.queue = make(chan Record, queue)
	l.wg.Go(l.write)
}

// prepare makes sure that the file can be written, so that a mistake is found
// at the start. old says that its first record is of an earlier day: a process
// that never runs at midnight would never rotate.
func prepare(name string, now time.Time) (old bool, err error) {
	if fi, err := os.Stat(name); err == nil && fi.Mode()&(fs.ModeDir|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
		return false, fmt.Errorf("%s is not a file", name)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return false, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	first, _ := bufio.NewReader(io.LimitReader(f, 64<<10)).ReadBytes('\n')
	if err := f.Close(); err != nil {
		return false, err
	}
	var r struct{ Time time.Time }
	if json.Unmarshal(first, &r) != nil || r.Time.IsZero() {
		return false, nil
	}
	return r.Time.UTC().Format(time.DateOnly) < now.UTC().Format(time.DateOnly), nil
}

// Write takes a record, and returns at once: it does not wait for the disk. A
// record that the disk does not take is counted as dropped.
func (l *Log) Write(r Record) {
	verdict := r.Verdict
	switch verdict {
	case Admitted, Denied, WouldDeny:
	default:
		verdict = "other"
	}
	l.records.WithLabelValues(verdict).Inc()
	if l.out == nil {
		return
	}
	r.Node = l.node
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	r.bound()
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		l.dropped.Inc()
		return
	}
	select {
	case l.queue <- r:
	default:
		l.dropped.Inc()
	}
}

// write writes what is in the queue until that is closed and empty.
func (l *Log) write() {
	failing, torn := false, false
	for r := range l.queue {
		line, err := r.line()
		if err == nil {
			if torn {
				line = append([]byte("\n"), line...)
			}
			var n int
			n, err = l.out.Write(line)
			torn = err != nil && (n > 0 || torn)
		}
		if err != nil {
			l.dropped.Inc()
		}
		if (err != nil) != failing {
			failing = err != nil
			if failing {
				l.log.Error("audit log cannot be written: pulls go on, and their records are lost until it can", "error", err)
			} else {
				l.log.Info("audit log is written again")
			}
		}
	}
}

// Close writes what is still waiting and closes the file. What comes later is
// dropped.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	if l.queue != nil {
		close(l.queue)
	}
	l.mu.Unlock()
	l.wg.Wait()
	if l.file == nil {
		return nil
	}
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// bound cuts the texts that may be of any length.
func (r *Record) bound() {
	for _, s := range []*string{
		&r.Client, &r.User, &r.Upstream, &r.Repository, &r.Reference, &r.Digest, &r.Rule, &r.Reason, &r.Door, &r.Kind, &r.Source, &r.Verdict,
	} {
		if len(*s) > maxField {
			*s = strings.ToValidUTF8((*s)[:maxField], "") + "…"
		}
	}
}

// line returns the record as it stands in the file.
func (r Record) line() ([]byte, error) {
	r.Time = r.Time.UTC()
	line, err := json.Marshal(struct {
		Record
		Took float64 `json:"tookSeconds"`
	}{r, r.Took.Round(time.Microsecond).Seconds()})
	return append(line, '\n'), err
}
