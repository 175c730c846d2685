package blocklist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// file is the name of the list in Config.Dir; partSuffix is that of one that is
// being written.
const (
	file       = "blocklist.json"
	partSuffix = ".part"

	// maxFile bounds the file in bytes: it has all entries, at their longest.
	maxFile = MaxEntries*MaxNote + 1024
)

func path(dir string) string { return filepath.Join(dir, file) }

// load reads a file, all of it or nothing; none is an empty list.
func load(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	entries, err := parseFile(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return entries, nil
}

// parseFile reads what store has written.
func parseFile(data []byte) ([]Entry, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	if !json.Valid(data) {
		return nil, errors.New("it is not JSON")
	}
	entries, skipped, err := decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if skipped > 0 {
		return nil, fmt.Errorf("%d entries are not understood", skipped)
	}
	for i, e := range entries {
		entries[i] = e.normal()
	}
	return entries, nil
}

// store writes a file: after a crash it is the old or the new one.
func store(path string, entries []Entry) (err error) {
	part := path + partSuffix
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if entries == nil {
		entries = []Entry{}
	}
	_, err = f.Write(append(encode(entries), '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
