package mirror

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// A read ahead of bytes that never come ends with the stream, and is waited for.
func TestFinishEndsAReadAhead(t *testing.T) {
	t.Parallel()
	c, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	blob, err := c.Blob(proto.Blob{Digest: proto.DigestOf([]byte("x")), Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Release()
	s := &stream{size: 1, content: blob.NewReader(t.Context()), cancel: func() {}}
	if late, err := s.await(0); !late || err != nil {
		t.Fatalf("await = %v, %v, want late", late, err)
	}
	if err := s.finish(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("finish = %v, want what the read ahead came to", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read after finish = %v", err)
	}
	if _, err := s.Seek(0, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Seek after finish = %v", err)
	}
}
