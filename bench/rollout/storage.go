package rollout

import (
	"fmt"
	"os"
	"syscall"
)

const (
	// sharedMemory is where Linux has files in memory.
	sharedMemory = "/dev/shm"
	// tmpfs is how statfs(2) calls a filesystem in memory.
	tmpfs = 0x01021994
	// roomy is the share of the free memory that a rollout may need for processes
	// and files to have the files there unasked. It leaves room for another run
	// that begins at the same time, and for what an estimate leaves out: a file of
	// a daemon's index that is mapped when a tmpfs is full kills the daemon.
	roomy = 0.5
)

// A storage is a folder for files.
type storage struct {
	path     string
	inMemory bool
	free     int64 // bytes
}

// String returns what the result says.
func (s storage) String() string {
	if s.inMemory {
		return "in memory (" + s.path + ")"
	}
	return "on disk (" + s.path + ")"
}

// storageAt looks at a folder that files are to be put into.
func storageAt(path string) (storage, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(path, &fs); err != nil {
		return storage{}, fmt.Errorf("--dir: %s: %w", path, err)
	}
	const writeAndSearch = 2 | 1
	if err := syscall.Access(path, writeAndSearch); err != nil {
		return storage{}, fmt.Errorf("--dir: %s: %w", path, err)
	}
	return storage{path: path, inMemory: int64(fs.Type) == tmpfs, free: int64(fs.Bavail) * int64(fs.Bsize)}, nil
}

// findStorage returns where the files of the run go; see doc.go.
func (o Options) findStorage() (storage, error) {
	if o.Dir != "" {
		return storageAt(o.Dir)
	}
	temporary, err := storageAt(os.TempDir())
	if err != nil {
		return storage{}, err
	}
	shared, err := storageAt(sharedMemory)
	if err != nil {
		o.Log.Debug("no files in memory", "error", err)
		return temporary, nil
	}
	return o.need(0).store(shared, temporary, memoryLeft(os.DirFS("/"), "MemAvailable:")), nil
}

// store returns which of two places the files go to where so many bytes of
// memory can be had: shared, if it is in memory and roomy, else temporary.
func (d demand) store(shared, temporary storage, memory int64) storage {
	if shared.inMemory && float64(d.disk) <= roomy*float64(shared.free) && float64(d.memory+d.disk) <= roomy*float64(memory) {
		return shared
	}
	return temporary
}
