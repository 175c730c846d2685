package door

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A counted file is one whose reads by the program are counted. The kernel's are
// not.
type counted struct {
	*os.File
	reads *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	c.reads.Add(1)
	return c.File.Read(p)
}

// WriteTo would take another way round.
func (c counted) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{c}) }

// A file goes from the disk to the socket without the program reading it: all
// that it reads is the beginning, in which net/http looks for a type.
func TestSendfile(t *testing.T) {
	t.Parallel()
	const size = 64<<20 + 12345
	f := zeros(t, size)
	_, err := f.WriteAt([]byte("end"), size-3)
	must(t, err)
	for _, part := range []struct{ rng, length string }{
		{"", strconv.Itoa(size)},
		{"bytes=5000000-", strconv.Itoa(size - 5000000)},
	} {
		var reads atomic.Int64
		d := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, counted{f, &reads})
		})
		req, err := http.NewRequest("GET", "http://"+d.Addr(), nil)
		must(t, err)
		req.Header.Set("Range", part.rng)
		resp, err := browser(t).Do(req)
		must(t, err)
		data, err := io.ReadAll(resp.Body)
		must(t, err)
		resp.Body.Close()
		if strconv.Itoa(len(data)) != part.length || string(data[len(data)-3:]) != "end" {
			t.Errorf("Range %q: %d bytes, want %s", part.rng, len(data), part.length)
		}
		if n := reads.Load(); n > 4 {
			t.Errorf("Range %q: the program read the file %d times: sendfile was lost", part.rng, n)
		}
	}
}

// Nor does it read a file that it sends piece by piece, as one that is still
// arriving, after a beginning that it has written.
func TestSendfileInPieces(t *testing.T) {
	t.Parallel()
	const piece, pieces = 256 << 10, 8
	f := zeros(t, pieces*piece)
	var reads atomic.Int64
	d := open(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(5+pieces*piece))
		fmt.Fprint(w, "begin")
		must(t, http.NewResponseController(w).Flush())
		for range pieces {
			n, err := io.Copy(w, &io.LimitedReader{R: counted{f, &reads}, N: piece})
			if n != piece || err != nil {
				t.Errorf("%d bytes and %v", n, err)
			}
		}
	})
	if _, body := get(t, browser(t), "http://"+d.Addr()); len(body) != 5+pieces*piece {
		t.Errorf("%d bytes", len(body))
	}
	if n := reads.Load(); n > 0 {
		t.Errorf("the program read the file %d times: sendfile was lost", n)
	}
}

// A file that becomes shorter while it is sent does not hang, nor send more.
func TestShrunkFile(t *testing.T) {
	t.Parallel()
	f := zeros(t, 10<<20)
	sent := make(chan int64, 1)
	d := open(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "20971520")
		n, err := io.Copy(w, io.LimitReader(f, 20<<20))
		must(t, err)
		sent <- n
	})
	resp, err := browser(t).Get("http://" + d.Addr())
	must(t, err)
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != 10<<20 || err != io.ErrUnexpectedEOF {
		t.Errorf("%d bytes and %v", n, err)
	}
	if n := <-sent; n != 10<<20 {
		t.Errorf("the handler sent %d bytes", n)
	}
}

// The deadline of writes begins with a write, and not with the request.
func TestSlowSource(t *testing.T) {
	t.Parallel()
	d := openPatient(t, Config{}, 200*time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			time.Sleep(300 * time.Millisecond)
			fmt.Fprintln(w, "a line")
			must(t, http.NewResponseController(w).Flush())
		}
	})
	if _, body := get(t, browser(t), "http://"+d.Addr()); body != "a line\na line\na line\n" {
		t.Errorf("%q", body)
	}
}

// A deadline that a handler sets holds.
func TestHandlersDeadline(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	d := open(t, Config{}, func(w http.ResponseWriter, _ *http.Request) {
		must(t, http.NewResponseController(w).SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
		var err error
		for err == nil {
			_, err = w.Write(make([]byte, 64<<10))
		}
		ended <- err
	})
	fmt.Fprint(dial(t, d), "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	select {
	case <-ended:
	case <-time.After(within):
		t.Fatal("the handler still writes")
	}
}

// What a file of a gigabyte costs the process in CPU, through a door and through
// a plain http.Server.
func BenchmarkServe(b *testing.B) {
	const size = 1 << 30
	f := zeros(b, size)
	handler := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(f, 0, size))
	}
	whole := func(w http.ResponseWriter, r *http.Request) {
		_, err := f.Seek(0, io.SeekStart)
		must(b, err)
		http.ServeContent(w, r, "", time.Time{}, f)
	}
	for name, h := range map[string]http.HandlerFunc{"sendfile": whole, "copied": handler} {
		b.Run(name, func(b *testing.B) {
			d := open(b, Config{}, h)
			c := browser(b)
			b.SetBytes(size)
			var was, is syscall.Rusage
			must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &was))
			for b.Loop() {
				resp, err := c.Get("http://" + d.Addr())
				must(b, err)
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 1<<20))
				must(b, err)
				if n != size {
					b.Fatal(n)
				}
				resp.Body.Close()
			}
			must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &is))
			cpu := time.Duration(is.Utime.Nano() + is.Stime.Nano() - was.Utime.Nano() - was.Stime.Nano())
			b.ReportMetric(cpu.Seconds()/float64(b.N), "CPU-s/GiB")
		})
	}
}
