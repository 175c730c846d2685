package runtimes

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// maxFile bounds in bytes what is read of a configuration file.
const maxFile = 4 << 20

// A view is what a planner sees of the files.
type view struct {
	// read returns a file's content, and whether it is there.
	read func(file string) ([]byte, bool, error)
	// list returns the names of the files in a folder, sorted; none if there is
	// no such folder.
	list func(dir string) ([]string, error)
}

// A tree is the files below a root, with the record of what was changed there.
type tree struct {
	o    Options
	root *os.Root
	rec  record
	at   string // path of the record
}

func openTree(k Kind, o Options) (*tree, error) {
	root, err := os.OpenRoot(o.Root)
	if err != nil {
		return nil, err
	}
	t := &tree{o: o, root: root, at: recordPath(k, o)}
	if err := t.loadRecord(); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tree) close() { _ = t.root.Close() } // opened for reading

// local is a path as os.Root takes it.
func local(file string) string {
	if l := strings.TrimPrefix(path.Clean(file), "/"); l != "" {
		return l
	}
	return "."
}

// shown is a path as a person finds it.
func (t *tree) shown(file string) string { return path.Join(t.o.Root, file) }

// read returns a file as it is on the disk.
func (t *tree) read(file string) ([]byte, bool, error) {
	fi, err := t.root.Lstat(local(file))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, false, nil
	case err != nil:
		return nil, false, t.explain(file, err)
	case fi.Mode()&fs.ModeSymlink != 0:
		return nil, false, fmt.Errorf("%s is a symbolic link: name the file that it leads to: %w", t.shown(file), ErrRefused)
	case !fi.Mode().IsRegular():
		return nil, false, fmt.Errorf("%s is not a regular file: %w", t.shown(file), ErrRefused)
	case fi.Size() > maxFile:
		return nil, false, fmt.Errorf("%s has %d bytes, which is too long for a configuration: %w", t.shown(file), fi.Size(), ErrRefused)
	}
	data, err := t.root.ReadFile(local(file))
	if err != nil {
		return nil, false, t.explain(file, err)
	}
	if data == nil {
		data = []byte{}
	}
	return data, true, nil
}

// explain says what an error of os.Root means.
func (t *tree) explain(file string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && strings.Contains(p.Err.Error(), "escapes") {
		return fmt.Errorf("%s is reached by a symbolic link that leads elsewhere: name the real file: %w", t.shown(file), ErrRefused)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: run it as root", err)
	}
	return err
}

func (t *tree) list(dir string) ([]string, error) {
	d, err := t.root.Open(local(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, t.explain(dir, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// disk is the view of what is there.
func (t *tree) disk() view { return view{read: t.read, list: t.list} }

// owned is a file's mode and owner, zero for none.
type owned struct {
	Mode fs.FileMode `json:"mode"`
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
}

func (t *tree) owned(file string) (owned, error) {
	fi, err := t.root.Lstat(local(file))
	if err != nil {
		return owned{}, err
	}
	w := owned{Mode: fi.Mode().Perm(), UID: -1, GID: -1}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		w.UID, w.GID = int(st.Uid), int(st.Gid)
	}
	return w, nil
}

// write writes a file as a whole or not at all.
func (t *tree) write(file string, content []byte, w owned) (err error) {
	temp := local(file) + ".shoal-" + rand.Text()[:8]
	f, err := t.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return t.explain(file, err)
	}
	defer func() {
		if err != nil {
			_ = t.root.Remove(temp) // what failed is what matters
		}
	}()
	_, err = f.Write(content)
	// The owner before the mode: a change of the owner may clear bits of it.
	if fi, serr := f.Stat(); err == nil && serr == nil && w.UID >= 0 {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != w.UID || int(st.Gid) != w.GID) {
			err = f.Chown(w.UID, w.GID)
		}
	}
	if err = errors.Join(err, f.Chmod(w.Mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := t.root.Rename(temp, local(file)); err != nil {
		return err
	}
	return t.sync(path.Dir(file))
}

// sync makes the names in a folder last.
func (t *tree) sync(dir string) error {
	d, err := t.root.Open(local(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// missing returns the folders of a file that are not there, the outermost first.
func (t *tree) missing(file string) ([]string, error) {
	var dirs []string
	for dir := path.Dir(file); dir != "/"; dir = path.Dir(dir) {
		if _, err := t.root.Stat(local(dir)); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, t.explain(dir, err)
		}
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs, nil
}
