package rollout

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// folders are named so, and held by a lock on a file in them that ends with the
// process.
const (
	folderPattern = "shoal-bench-*"
	lockName      = "lock"
)

// A folder holds all files of one run.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes one below dir.
func newFolder(dir string) (*folder, error) {
	path, err := os.MkdirTemp(dir, folderPattern)
	if err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	lock, err := lockFolder(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--dir: %w", err), os.RemoveAll(path))
	}
	return &folder{path: path, lock: lock}, nil
}

// lockFolder makes the lock of a folder, and holds it before it has its name: a
// run that sweeps just then would take it for one that nobody holds.
func lockFolder(path string) (*os.File, error) {
	name := filepath.Join(path, lockName)
	lock, err := os.Create(name + ".new")
	if err != nil {
		return nil, err
	}
	err = os.NewSyscallError("flock", syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	if err == nil {
		err = os.Rename(lock.Name(), name)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func (f *folder) remove() error { return errors.Join(os.RemoveAll(f.path), f.lock.Close()) }

// sweepFolders removes the folders of runs that are no more below each of dirs,
// and returns them.
func sweepFolders(dirs ...string) ([]string, error) {
	var found, swept []string
	for _, dir := range dirs {
		below, err := filepath.Glob(filepath.Join(dir, folderPattern))
		if err != nil {
			return nil, err
		}
		found = append(found, below...)
	}
	for _, path := range found {
		if !ours(path) {
			continue
		}
		lock, err := os.Open(filepath.Join(path, lockName))
		if err != nil {
			continue // it is not of a run
		}
		held := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
		if !held {
			if err := os.RemoveAll(path); err != nil {
				return swept, errors.Join(err, lock.Close())
			}
			swept = append(swept, path)
		}
		_ = lock.Close() // nothing was written
	}
	return swept, nil
}

// ours reports whether path is a folder of this user's.
func ours(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Getuid()
}
