package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// keep is how many jobs that have ended are remembered.
const keep = 100

// suffix is that of a job's file; partSuffix that of one being written.
const (
	suffix     = ".json"
	partSuffix = ".part"
)

// A store keeps each job in a file of its own, which is written as a whole or
// not at all.
type store struct {
	dir string
	log *slog.Logger
}

func openStore(dir string, log *slog.Logger) (*store, error) {
	if dir == "" {
		return nil, errors.New("jobs: no directory to keep them in")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	return &store{dir: dir, log: log}, nil
}

func (s *store) path(id string) string { return filepath.Join(s.dir, id+suffix) }

// load returns the jobs that are kept, the oldest first, and removes what a
// crash left behind. A file that is no job is left alone and said.
func (s *store) load() ([]Job, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	var all []Job
	for _, e := range entries {
		name := e.Name()
		if strings.HasSuffix(name, partSuffix) {
			s.drop(filepath.Join(s.dir, name))
			continue
		}
		id, ok := strings.CutSuffix(name, suffix)
		if !ok {
			continue
		}
		j, err := s.read(id)
		if err != nil {
			s.log.Warn("job cannot be read: it is left out", "file", filepath.Join(s.dir, name), "error", err)
			continue
		}
		all = append(all, j)
	}
	slices.SortFunc(all, func(a, b Job) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// read returns the job with an ID, which is one of this package's making.
func (s *store) read(id string) (Job, error) {
	data, err := os.ReadFile(s.path(id))
	if err != nil {
		return Job{}, err
	}
	var j Job
	if err := json.Unmarshal(data, &j); err != nil {
		return Job{}, err
	}
	if j.ID != id || len(j.Images) != len(j.Spec.Images) {
		return Job{}, errors.New("it is not the job that its name says")
	}
	return j, nil
}

// save writes j and makes sure that it stays written.
func (s *store) save(j Job) error {
	data, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("keep job %s: %w", j.ID, err)
	}
	if err := replace(s.path(j.ID), data); err != nil {
		return fmt.Errorf("keep job %s: %w", j.ID, err)
	}
	return nil
}

func (s *store) remove(id string) { s.drop(s.path(id)) }

func (s *store) drop(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("file not removed", "file", path, "error", err)
	}
}

// replace writes the file at path anew: after a crash it is the old or the new
// one. Only one goroutine at a time may write the same path.
func replace(path string, data []byte) (err error) {
	part := path + partSuffix
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
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
