package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/proto"
)

// containerdName is the annotation that ctr and nerdctl read the whole name of
// an image from. They take that of the specification for a tag alone.
const containerdName = "io.containerd.image.name"

// A layout is an OCI image layout in a folder (image-spec, image-layout.md).
type layout struct{ dir string }

// openLayout returns the layout in dir. It fails if there is none.
func openLayout(dir string) (layout, error) {
	l := layout{dir}
	data, err := os.ReadFile(l.path(ocispec.ImageLayoutFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, fmt.Errorf("%s is not an OCI image layout: it has no file %s; name the folder that an export wrote", dir, ocispec.ImageLayoutFile)
	case err != nil:
		return l, err
	}
	var v ocispec.ImageLayout
	if err := json.Unmarshal(data, &v); err != nil {
		return l, fmt.Errorf("%s: %w", l.path(ocispec.ImageLayoutFile), err)
	}
	if v.Version != ocispec.ImageLayoutVersion {
		return l, fmt.Errorf("%s: has version %q of the image layout, and only %s is known", l.path(ocispec.ImageLayoutFile), v.Version, ocispec.ImageLayoutVersion)
	}
	_, err = l.images()
	return l, err
}

// createLayout returns the layout in dir, which it makes if dir is not there or
// empty, for one process at a time. The caller calls unlock.
func createLayout(dir string) (l layout, unlock func() error, err error) {
	l = layout{dir}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return l, nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return l, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return l, nil, fmt.Errorf("another export is writing to %s", dir)
	} // what can't be locked, such as some network file systems, is not
	entries, err := lock.Readdirnames(1)
	switch {
	case len(entries) == 0 && errors.Is(err, io.EOF):
		version, merr := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
		err = errors.Join(merr, l.setImages(nil), replaceFile(l.path(ocispec.ImageLayoutFile), version))
	case err == nil:
		if _, err = openLayout(dir); err != nil {
			err = fmt.Errorf("%w; to write an export, name a new folder or that of an earlier one", err)
		}
	}
	if err != nil {
		return l, nil, err
	}
	return l, lock.Close, nil
}

func (l layout) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// blob returns the path of a blob's file.
func (l layout) blob(d proto.Digest) string {
	return l.path(ocispec.ImageBlobsDir, d.Algorithm(), d.Hex())
}

// images returns the entries of index.json.
func (l layout) images() ([]ocispec.Descriptor, error) {
	name := l.path(ocispec.ImageIndexFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s, so nothing says which images are in it: the copy or the export of it is not complete", l.dir, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return index.Manifests, nil
}

func (l layout) setImages(ds []ocispec.Descriptor) error {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: ds}
	index.SchemaVersion = 2
	if index.Manifests == nil {
		index.Manifests = []ocispec.Descriptor{}
	}
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(l.path(ocispec.ImageIndexFile), append(data, '\n'))
}

// add names an image that the layout has all blobs of. An entry of the same
// name is replaced.
func (l layout) add(name string, d ocispec.Descriptor) error {
	ds, err := l.images()
	if err != nil {
		return err
	}
	ds = slices.DeleteFunc(ds, func(o ocispec.Descriptor) bool {
		return o.Annotations[ocispec.AnnotationRefName] == name
	})
	d.Annotations = map[string]string{ocispec.AnnotationRefName: name, containerdName: name}
	return l.setImages(append(ds, d))
}

// stat reports whether the file of b is there with the right length. The error
// says what is wrong with it, and is fs.ErrNotExist if it is missing.
func (l layout) stat(b proto.Blob) error {
	fi, err := os.Stat(l.blob(b.Digest))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missing{l.blob(b.Digest)}
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", l.blob(b.Digest))
	case fi.Size() != b.Size:
		return fmt.Errorf("%s has %d bytes instead of %d", l.blob(b.Digest), fi.Size(), b.Size)
	}
	return nil
}

// A missing blob is one without a file.
type missing struct{ file string }

func (m missing) Error() string { return m.file + " is missing" }
func (missing) Unwrap() error   { return fs.ErrNotExist }

// check is stat that reads the file as well, and compares it with the digest.
func (l layout) check(ctx context.Context, b proto.Blob) error {
	if err := l.stat(b); err != nil {
		return err
	}
	f, err := os.Open(l.blob(b.Digest))
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	h := b.Digest.NewHash()
	n, err := io.Copy(h, reader{ctx, f})
	switch {
	case err != nil:
		return err
	case n != b.Size || !b.Digest.Matches(h):
		return fmt.Errorf("%s is damaged: its bytes are not those that its name says", l.blob(b.Digest))
	}
	return nil
}

// A reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// maxTries is how often a blob is asked for without a byte of it coming.
const maxTries = 4

// firstPause is how long the second try waits. Each other waits twice as long.
const firstPause = 250 * time.Millisecond

// save writes the blob b. fetch returns its bytes from an offset on, and is
// called again, for what is left, when they end too early, unless the error is
// a refusal. What comes is told to count. An earlier save that was interrupted
// is gone on with. A blob stands under its name only when it is all there,
// right, and on the disk.
func (l layout) save(ctx context.Context, b proto.Blob, fetch func(ctx context.Context, from int64) (io.ReadCloser, error), count func(n int64)) error {
	name := l.blob(b.Digest)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	partial := filepath.Join(filepath.Dir(name), ".partial-"+b.Digest.Hex())
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close() // after a failure; else it has been closed
	h := b.Digest.NewHash()
	had, err := io.Copy(h, reader{ctx, f})
	if err != nil {
		return err
	}
	count(had)
	at := had
	for pause, tries := firstPause, 1; at < b.Size; {
		n, err := appendFrom(ctx, io.MultiWriter(f, h), fetch, at, b.Size-at, count)
		at += n
		if n > 0 {
			pause, tries = firstPause, 1
		}
		if err == nil || at == b.Size {
			continue
		}
		var no refusal
		if tries++; tries > maxTries || errors.As(err, &no) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
			pause *= 2
		}
	}
	if at != b.Size || !b.Digest.Matches(h) {
		count(-at)
		if err := os.Remove(partial); err != nil {
			return err
		}
		if had > 0 { // may be what was wrong
			return l.save(ctx, b, fetch, count)
		}
		return errors.New("what came is not what its digest says")
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(partial, name)
}

// appendFrom writes up to size bytes to w and returns how many it wrote. Fewer
// are an error.
func appendFrom(ctx context.Context, w io.Writer, fetch func(context.Context, int64) (io.ReadCloser, error), from, size int64, count func(int64)) (int64, error) {
	body, err := fetch(ctx, from)
	if err != nil {
		return 0, err
	}
	defer body.Close() // of no more use
	n, err := io.Copy(w, io.TeeReader(io.LimitReader(body, size), countWriter(count)))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// A countWriter is told how much is written.
type countWriter func(n int64)

func (c countWriter) Write(p []byte) (int, error) {
	c(int64(len(p)))
	return len(p), nil
}

// replaceFile writes a file so that it has its old or its new content, whatever
// happens.
func replaceFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".partial-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
