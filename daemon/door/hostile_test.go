package door

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// inUse is what the process holds, of the heap and of stacks.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// moreFiles raises the limit of open files as far as it may be, and returns it.
func moreFiles(t *testing.T) int {
	t.Helper()
	var files syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	files.Cur = files.Max
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files))
	return int(min(files.Cur, 1<<20))
}

// Ten thousand connections that are opened and say nothing, and as many that
// have had an answer, are closed down to the limit, while a download goes on
// undisturbed and new clients are answered.
func TestTenThousandIdle(t *testing.T) {
	const most = 1000
	conns := min(10_000, moreFiles(t)-most-500)
	registry := prometheus.NewRegistry()
	more := make(chan struct{})
	d := open(t, Config{MaxConns: most, Registry: registry}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			w.Header().Set("Content-Length", "2")
			_, _ = io.WriteString(w, "a")
			_ = http.NewResponseController(w).Flush()
			<-more
			_, _ = io.WriteString(w, "b")
			return
		}
		ok(w, r)
	})
	download, err := browser(t).Get("http://" + d.Addr() + "/slow")
	must(t, err)
	defer download.Body.Close()

	before := inUse()
	idle := make([]net.Conn, 0, conns)
	defer func() {
		for _, c := range idle {
			_ = c.Close()
		}
	}()
	for i := range conns {
		c, err := net.Dial("tcp", d.Addr())
		must(t, err)
		idle = append(idle, c)
		if i%2 == 0 { // half of them have had an answer
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			must(t, err)
		}
		if i%1000 == 999 {
			if status, _ := get(t, browser(t), "http://"+d.Addr()); status != 200 {
				t.Fatalf("status %d with %d idle connections", status, i)
			}
		}
	}
	if all, _ := d.crowd.count(); all > most {
		t.Errorf("%d connections, at most %d are allowed", all, most)
	}
	if grown := inUse() - before; grown > 64<<20 {
		t.Errorf("%d MiB more are in use, by %d connections and their clients", grown>>20, conns)
	} else {
		t.Logf("%d connections, %d of them open: %d KiB more in use, their clients included", conns, most, grown>>10)
	}
	if n := count(t, registry, "shoal_door_connections_evicted_total"); n < float64(conns-most) {
		t.Errorf("%v connections gave way, want %d or more", n, conns-most)
	}
	close(more)
	if data, err := io.ReadAll(download.Body); err != nil || string(data) != "ab" {
		t.Errorf("the download that was going on: %q, %v", data, err)
	}
}

// When every connection has a request, a newcomer is closed at once.
func TestFull(t *testing.T) {
	t.Parallel()
	var in sync.WaitGroup
	finish := make(chan struct{})
	d := open(t, Config{MaxConns: 4}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			in.Done()
			<-finish
		}
		ok(w, r)
	})
	in.Add(4)
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() { get(t, browser(t), "http://"+d.Addr()+"/wait") })
	}
	in.Wait()
	if resp, err := browser(t).Get("http://" + d.Addr()); err == nil {
		t.Errorf("%s, although there was no room", resp.Status)
	}
	close(finish)
	clients.Wait()
	if status, _ := get(t, browser(t), "http://"+d.Addr()); status != 200 {
		t.Errorf("status %d after there was room again", status)
	}
}

// Clients that send their headers a line at a time are cut off, and do not
// disturb others: what has to give way for them is their own.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	d := open(t, Config{MaxConns: 100, Server: &http.Server{ReadHeaderTimeout: 500 * time.Millisecond}}, ok)
	var lorises sync.WaitGroup
	for range 200 {
		lorises.Go(func() {
			c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", d.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(within))
			fmt.Fprintf(c, "GET / HTTP/1.1\r\n")
			for err == nil {
				_, err = fmt.Fprintf(c, "X-%d: a\r\n", time.Now().UnixNano())
				time.Sleep(20 * time.Millisecond)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a client that never ends its headers was not cut off")
			}
		})
	}
	for range 20 {
		if status, _ := get(t, browser(t), "http://"+d.Addr()); status != 200 {
			t.Errorf("status %d for an honest client", status)
		}
	}
	lorises.Wait()
}

// both calls run with a door for plain HTTP/1.1 and with one for HTTP/2.
func both(t *testing.T, patience time.Duration, h http.HandlerFunc, run func(t *testing.T, url string, c *http.Client)) {
	t.Helper()
	ca := newAuthority(t)
	plain := openPatient(t, Config{}, patience, h)
	secure := openPatient(t, Config{TLS: ca.files(t, t.TempDir(), "a")}, patience, h)
	t.Run("HTTP/1.1", func(t *testing.T) { run(t, "http://"+plain.Addr(), browser(t)) })
	t.Run("HTTP/2", func(t *testing.T) { run(t, "https://"+secure.Addr(), browser(t, trusting(ca.pool))) })
}

// A body that is not sent ends the request if it is read.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	failed := make(chan error, 1)
	both(t, 300*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		failed <- err
	}, func(t *testing.T, url string, c *http.Client) {
		source, sink := io.Pipe()
		go func() { _, _ = io.WriteString(sink, "half") }()
		defer sink.Close()
		resp, err := c.Post(url, "text/plain", source)
		if err == nil { // it is answered, or not
			resp.Body.Close()
		}
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the handler was told %v", err)
		}
	})
}

// A body that is not sent ends the connection if it is not read either.
func TestSlowBodyOfNobody(t *testing.T) {
	t.Parallel()
	d := openPatient(t, Config{}, 300*time.Millisecond, ok)
	c := dial(t, d)
	fmt.Fprint(c, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a client that does not send its body was not cut off")
	}
}

// A body may take longer than one read of it, to be sent and to be read, and
// the answer longer than that.
func TestLongBody(t *testing.T) {
	t.Parallel()
	const patience = 800 * time.Millisecond
	both(t, patience, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadFull(r.Body, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		time.Sleep(patience * 3 / 2)
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		select {
		case <-r.Context().Done():
			t.Error("the request ended while it was answered")
		case <-time.After(patience * 3 / 2):
		}
		_, _ = w.Write(data)
	}, func(t *testing.T, url string, c *http.Client) {
		source, sink := io.Pipe()
		go func() {
			defer sink.Close()
			for range 10 {
				_, _ = io.WriteString(sink, "a")
				time.Sleep(patience / 4)
			}
		}()
		resp, err := c.Post(url, "text/plain", source)
		must(t, err)
		defer resp.Body.Close()
		if data, err := io.ReadAll(resp.Body); len(data) != 9 || err != nil {
			t.Errorf("%q and %v", data, err)
		}
	})
}

// A header without an end is refused after a bounded number of bytes.
func TestHeaderBomb(t *testing.T) {
	t.Parallel()
	d := open(t, Config{}, ok)
	c := dial(t, d)
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nX-Bomb: ")
	must(t, err)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(c).ReadString('\n')
		answer <- line
	}()
	sent := 0
	chunk := bytes.Repeat([]byte("a"), 4<<10)
	for sent < 256<<20 {
		n, err := c.Write(chunk)
		if sent += n; err != nil {
			break
		}
	}
	if sent > 32<<20 { // what the kernel's buffers hold is not up to us
		t.Errorf("%d MiB of a header were taken", sent>>20)
	}
	if line := <-answer; line != "" && !strings.Contains(line, "431") {
		t.Errorf("the answer is %q", line)
	}
	if status, _ := get(t, browser(t), "http://"+d.Addr()); status != 200 {
		t.Errorf("status %d for an honest client", status)
	}
}

func TestHeaderBombOverHTTP2(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	d := open(t, Config{TLS: ca.files(t, t.TempDir(), "a")}, ok)
	c := browser(t, trusting(ca.pool))
	if status, _ := get(t, c, "https://"+d.Addr()); status != 200 {
		t.Fatal(status)
	}
	req, err := http.NewRequest("GET", "https://"+d.Addr(), nil)
	must(t, err)
	for i := range 100 {
		req.Header.Set(fmt.Sprintf("X-Bomb-%d", i), strings.Repeat("a", 8<<10))
	}
	resp, err := c.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s for 800 KiB of headers", resp.Status)
		}
	}
	if status, _ := get(t, browser(t, trusting(ca.pool)), "https://"+d.Addr()); status != 200 {
		t.Errorf("status %d for an honest client", status)
	}
}

// A client that asks for more at once than it may have is refused what is too
// much, and others are not.
func TestFlood(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for _, with := range []*TLS{nil, ca.files(t, t.TempDir(), "a")} {
		const most = 8
		in := make(chan struct{}, 100)
		finish := make(chan struct{})
		d := open(t, Config{RequestsPerClient: most, TLS: with}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				in <- struct{}{}
				<-finish
			}
			ok(w, r)
		})
		scheme := "http://"
		if with != nil {
			scheme = "https://" // all of it on one connection
		}
		flooder := browser(t, trusting(ca.pool))
		statuses := make(chan int, 50)
		ask := func() {
			resp, err := flooder.Get(scheme + d.Addr() + "/wait")
			if err != nil {
				t.Error(err)
				statuses <- 0
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			statuses <- resp.StatusCode
		}
		for range most {
			go ask()
			<-in
		}
		for range 42 {
			go ask()
		}
		for range 42 {
			if status := <-statuses; status != http.StatusServiceUnavailable {
				t.Errorf("%s: status %d over the limit, want 503", scheme, status)
			}
		}
		if status, _ := get(t, browser(t, trusting(ca.pool), from("127.0.0.2")), scheme+d.Addr()+"/"); status != 200 {
			t.Errorf("%s: status %d for another client", scheme, status)
		}
		close(finish)
		for range most {
			if status := <-statuses; status != 200 {
				t.Errorf("%s: status %d within the limit", scheme, status)
			}
		}
		if status, _ := get(t, flooder, scheme+d.Addr()+"/"); status != 200 {
			t.Errorf("%s: status %d after the flood", scheme, status)
		}
	}
}

func TestMaxBody(t *testing.T) {
	t.Parallel()
	d := open(t, Config{MaxBody: 10}, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	for body, want := range map[string]int{"0123456789": 200, "0123456789a": 413} {
		resp, err := browser(t).Post("http://"+d.Addr(), "text/plain", strings.NewReader(body))
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%d bytes: %s", len(body), resp.Status)
		}
	}
	chunked := io.MultiReader(strings.NewReader("0123456789a")) // of a length that is not told
	resp, err := browser(t).Post("http://"+d.Addr(), "text/plain", chunked)
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("chunked: %s", resp.Status)
	}
}

// A client that does not read what it has asked for is let go.
func TestStoppedReader(t *testing.T) {
	t.Parallel()
	big := zeros(t, 256<<20)
	for _, how := range []string{"file", "bytes"} {
		ended := make(chan error, 1)
		d := openPatient(t, Config{}, 300*time.Millisecond, func(w http.ResponseWriter, _ *http.Request) {
			var src io.Reader = io.NewSectionReader(big, 0, 256<<20)
			if how == "file" {
				src = big
			}
			_, err := io.Copy(w, src)
			ended <- err
		})
		c := dial(t, d)
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: ended with %v", how, err)
			}
		case <-time.After(within):
			t.Fatalf("%s: the handler still writes", how)
		}
	}
}
