package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/bench/registry"
)

// start runs the program and returns its URL and a function that ends it.
func start(t *testing.T, dir string) (url string, stop func() error) {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, w, "127.0.0.1:0", dir, 0) }()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(line), func() error {
		cancel()
		return <-ended
	}
}

func count(t *testing.T, url string) (c registry.Counts) {
	t.Helper()
	resp, err := http.Get(url + "/count")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestServesCountsAndKeeps(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	dir := t.TempDir() + "/made/if/absent"
	url, stop := start(t, dir)
	img, err := registry.PushImage(t.Context(), url, "library/app", "1", []int64{1000}, 1)
	if err != nil {
		t.Fatal(err)
	}
	pull := func(url string) {
		resp, err := http.Get(url + "/v2/library/app/blobs/" + img.Layers[0].Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); n != 1000 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	pull(url)
	if n := count(t, url).BlobBytes; n != 1000 {
		t.Errorf("counted %d bytes, want 1000", n)
	}
	req, _ := http.NewRequest(http.MethodDelete, url+"/count", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := count(t, url).BlobBytes; n != 0 {
		t.Errorf("counted %d bytes after DELETE, want 0", n)
	}
	if err := stop(); err != nil {
		t.Errorf("ended with %v", err)
	}

	// The content is there again after a restart.
	url, stop = start(t, dir)
	pull(url)
	if err := stop(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestMistakes(t *testing.T) {
	if err := run(t.Context(), io.Discard, "127.0.0.1:0", "", 0); err == nil || !strings.Contains(err.Error(), "-dir") {
		t.Errorf("without a directory: %v", err)
	}
	if err := run(t.Context(), io.Discard, "nowhere", t.TempDir(), 0); err == nil {
		t.Error("an address without a port went through")
	}
}
