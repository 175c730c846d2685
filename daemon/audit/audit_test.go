package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func open(t *testing.T, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closed(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// records returns those of a file, and fails the test if a line is not one.
func records(t *testing.T, name string) (all []Record) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func TestRecordsAndRestart(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "logs", "audit.json")
	reg := prometheus.NewRegistry()
	l := open(t, Config{File: name, Node: "n", Registry: reg})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	at = time.Now().In(at.Location())
	l.Write(Record{
		Time: at, Door: "mirror", Client: "10.0.0.1", User: "ann\n{\"verdict\":\"admitted\"}", Upstream: "ghcr.io", Repository: "team/app",
		Reference: "v1", Digest: "sha256:aa", Kind: "manifest", Verdict: Denied, Rule: "signed", Reason: "sign it", Status: 403, Took: 1500 * time.Microsecond,
	})
	l.Write(Record{Verdict: Admitted, Bytes: 7, Source: "disk"})
	l.Write(Record{Verdict: WouldDeny, User: strings.Repeat("ä", maxField)})
	closed(t, l)
	closed(t, l)
	l.Write(Record{Verdict: Admitted}) // too late
	l = open(t, Config{File: name, Node: "n"})
	l.Write(Record{Verdict: Admitted, Repository: "again"})
	closed(t, l)

	got := records(t, name)
	if len(got) != 4 || got[3].Repository != "again" {
		t.Fatalf("%+v", got)
	}
	if r := got[0]; !r.Time.Equal(at) || r.Node != "n" || r.Rule != "signed" || r.User != "ann\n{\"verdict\":\"admitted\"}" || r.Status != 403 {
		t.Errorf("%+v", r)
	}
	if got[1].Time.IsZero() || len(got[2].User) > maxField+10 || !strings.HasSuffix(got[2].User, "ä…") {
		t.Errorf("%+v", got[1:])
	}
	data, _ := os.ReadFile(name)
	if first, _, _ := strings.Cut(string(data), "\n"); !strings.Contains(first, `"tookSeconds":0.0015`) || !strings.Contains(first, `Z","node":"n"`) {
		t.Errorf("%s", first)
	}
	fi, err := os.Stat(name)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	const want = `
# HELP shoal_audit_dropped_total Records that are not in the audit log, since the disk was full or too slow.
# TYPE shoal_audit_dropped_total counter
shoal_audit_dropped_total 1
# HELP shoal_audit_records_total Records of pulls that were admitted or denied, or that would have been denied if the policy did more than audit, whether or not they could be written.
# TYPE shoal_audit_records_total counter
shoal_audit_records_total{verdict="admitted"} 2
shoal_audit_records_total{verdict="denied"} 1
shoal_audit_records_total{verdict="would-deny"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestRotationAndRetention(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "audit.json")
	// A file of an earlier day, and one that was rotated long ago.
	yesterday, err := Record{Time: time.Now().Add(-25 * time.Hour), Verdict: Denied}.line()
	if err != nil {
		t.Fatal(err)
	}
	ancient := filepath.Join(dir, "audit-2020-01-02T03-04-05.000-time.json")
	other := filepath.Join(dir, "other.json")
	for n, data := range map[string][]byte{name: yesterday, ancient: yesterday, other: nil} {
		if err := os.WriteFile(n, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, Config{File: name, MaxSize: 1, KeepDays: 7})
	long := strings.Repeat("x", maxField)
	for range 1500 {
		l.Write(Record{Verdict: Admitted, Reason: long})
	}
	closed(t, l)
	total := 0
	files, err := filepath.Glob(filepath.Join(dir, "audit*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil || fi.Mode().Perm() != 0o600 || fi.Size() > 1<<20 {
			t.Errorf("%s: %v, %v", f, fi, err)
		}
		total += len(records(t, f))
	}
	if len(files) != 3 || total != 1501 {
		t.Errorf("%d records in %q", total, files)
	}
	if _, err := os.Stat(ancient); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is older than the retention is there: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("another file is gone: %v", err)
	}
}

// TestFullDisk: nothing waits for it, and what is lost is counted.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "audit.json")
	if err := os.Symlink("/dev/full", name); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	l := open(t, Config{File: name, Log: textLog(&said)})
	for range 3 {
		l.Write(Record{Verdict: Admitted})
	}
	closed(t, l)
	if n := testutil.ToFloat64(l.dropped); n != 3 {
		t.Errorf("%v dropped", n)
	}
	if n := strings.Count(said.String(), "\n"); n != 1 || !strings.Contains(said.String(), syscall.ENOSPC.Error()) {
		t.Errorf("the log has:\n%s", said.String())
	}
}

// a disk is a writer that does as it is told.
type disk struct {
	mu    sync.Mutex
	file  bytes.Buffer
	write func(p []byte) (take int, err error)
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.write(p)
	d.file.Write(p[:n])
	return n, err
}

// TestHangingDisk: a disk that does not answer holds nobody up.
func TestHangingDisk(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	d := &disk{write: func(p []byte) (int, error) { <-hang; return len(p), nil }}
	l := newLog(Config{})
	l.start(d)
	const n = queue + 100
	for range n {
		l.Write(Record{Verdict: Admitted})
	}
	lost := testutil.ToFloat64(l.dropped)
	if lost != 100 && lost != 99 { // one may be on its way
		t.Errorf("%v dropped", lost)
	}
	close(hang)
	closed(t, l)
	if got := strings.Count(d.file.String(), "\n"); got != n-int(lost) {
		t.Errorf("%d records are written, %v are lost of %d", got, lost, n)
	}
}

// TestTornLine: what a full disk took half of does not spoil what comes next.
func TestTornLine(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	i := 0
	d := &disk{write: func(p []byte) (int, error) {
		switch i++; i {
		case 2:
			return 10, syscall.ENOSPC
		case 3:
			return 0, syscall.ENOSPC
		}
		return len(p), nil
	}}
	l := newLog(Config{Log: textLog(&said)})
	l.start(d)
	for i := range 5 {
		l.Write(Record{Verdict: Admitted, Repository: fmt.Sprint(i)})
	}
	closed(t, l)
	var good []string
	for line := range strings.Lines(d.file.String()) {
		var r Record
		if json.Unmarshal([]byte(line), &r) == nil {
			good = append(good, r.Repository)
		}
	}
	if got := strings.Join(good, " "); got != "0 3 4" || testutil.ToFloat64(l.dropped) != 2 {
		t.Errorf("records %s are there, %v dropped:\n%s", got, testutil.ToFloat64(l.dropped), d.file.String())
	}
	if n := strings.Count(said.String(), "\n"); n != 2 {
		t.Errorf("the log has:\n%s", said.String())
	}
}

func TestNoFile(t *testing.T) {
	t.Parallel()
	l := open(t, Config{})
	l.Write(Record{Verdict: Denied})
	closed(t, l)
	l.Write(Record{Verdict: "nonsense"})
	if n := testutil.ToFloat64(l.records.WithLabelValues(Denied)); n != 1 || testutil.ToFloat64(l.dropped) != 0 {
		t.Errorf("%v", n)
	}
}

func TestOpenFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, pipe, "/dev/null/x"} {
		if _, err := Open(Config{File: name}); err == nil || !strings.Contains(err.Error(), "audit log: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConcurrentWritesAndClose(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "audit.json")
	l := open(t, Config{File: name})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				l.Write(Record{Verdict: Admitted, Reason: "x"})
			}
		})
	}
	closed(t, l)
	wg.Wait()
	if got := len(records(t, name)); got+int(testutil.ToFloat64(l.dropped)) != 2000 {
		t.Errorf("%d records and %v dropped of 2000", got, testutil.ToFloat64(l.dropped))
	}
}
