package runtimes

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// backupSuffix is what a file is called beside which it was before.
const backupSuffix = ".before-shoal"

// A record says what was changed, for the way back.
type record struct {
	Version int    `json:"version"`
	Note    string `json:"note"`
	// Mirror is what the files were last written for.
	Mirror string  `json:"mirror"`
	Files  []entry `json:"files"`
	// Dirs are the folders that were made, the outermost first.
	Dirs []string `json:"dirs,omitempty"`
}

// An entry is one changed file.
type entry struct {
	Path string `json:"path"`
	// Existed says that there was a file, which is kept in Path.before-shoal.
	Existed bool   `json:"existed"`
	Was     owned  `json:"was"`
	Before  string `json:"before,omitempty"` // SHA-256 of it
	// After is the SHA-256 of what was written, Prior of what was written by
	// the run before, which is still there if this one was cut off.
	After string `json:"after,omitempty"`
	Prior string `json:"prior,omitempty"`
}

const recordVersion = 1

// recordPath is where the record of a runtime is: beside its configuration.
// Podman and CRI-O share a file, and so a record.
func recordPath(k Kind, o Options) string {
	dir := path.Dir(o.File)
	if k == Podman || k == CRIO {
		dir = path.Dir(dir) // registries.conf.d has configurations only
	}
	return path.Join(dir, "shoal-configure.json")
}

func (t *tree) loadRecord() error {
	data, ok, err := t.read(t.at)
	if err != nil || !ok {
		return err
	}
	if err := json.Unmarshal(data, &t.rec); err != nil {
		return fmt.Errorf("%s, the record of what shoal configure did, is damaged: %w; put the files with %s back by hand and remove it", t.shown(t.at), err, backupSuffix)
	}
	if t.rec.Version != recordVersion {
		return fmt.Errorf("%s is of another version of shoal: undo with that one", t.shown(t.at))
	}
	for _, e := range t.rec.Files {
		if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path {
			return fmt.Errorf("%s, the record of what shoal configure did, names the path %q", t.shown(t.at), e.Path)
		}
	}
	return nil
}

func (r *record) entry(file string) (entry, bool) {
	i := slices.IndexFunc(r.Files, func(e entry) bool { return e.Path == file })
	if i < 0 {
		return entry{}, false
	}
	return r.Files[i], true
}

// sum is what a file is told apart by; "" is that of no file.
func sum(content []byte, exists bool) string {
	if !exists {
		return ""
	}
	h := sha256.Sum256(content)
	return hex.EncodeToString(h[:])
}

// ours reports whether content is what shoal configure left.
func (e entry) ours(content []byte, exists bool) bool {
	s := sum(content, exists)
	return s == e.After || s == e.Before || e.Prior != "" && s == e.Prior
}

// before returns what was there before the first change.
func (t *tree) before(e entry) ([]byte, bool, error) {
	if !e.Existed {
		return nil, false, nil
	}
	data, ok, err := t.read(e.Path + backupSuffix)
	if err != nil {
		return nil, false, err
	}
	if !ok || sum(data, true) != e.Before {
		return nil, false, fmt.Errorf("%s is not what was kept there: put %s right by hand, and remove %s", t.shown(e.Path+backupSuffix), t.shown(e.Path), t.shown(t.at))
	}
	return data, true, nil
}

// original is the view of what was there before shoal configure, except for
// files that were edited since: those are as they are, without the old mirror.
func (t *tree) original() view {
	v := t.disk()
	v.read = func(file string) ([]byte, bool, error) {
		data, ok, err := t.read(file)
		e, changed := t.rec.entry(file)
		if err != nil || !changed {
			return data, ok, err
		}
		if e.ours(data, ok) {
			return t.before(e)
		}
		if !ok {
			return nil, false, nil
		}
		return withoutMirror(path.Base(file), data, t.rec.Mirror), true, nil
	}
	v.list = func(dir string) ([]string, error) {
		names, err := t.list(dir)
		return slices.DeleteFunc(names, func(n string) bool {
			if strings.HasSuffix(n, backupSuffix) {
				return true
			}
			file := path.Join(dir, n)
			if slices.Contains(t.rec.Dirs, file) {
				inside, ierr := v.list(file)
				err = errors.Join(err, ierr)
				return len(inside) == 0
			}
			if _, changed := t.rec.entry(file); !changed {
				return false
			}
			_, ok, rerr := v.read(file)
			err = errors.Join(err, rerr)
			return !ok
		}), err
	}
	return v
}

// compare adds to p what has to change on the disk for e, and for files of
// earlier runs that are no longer needed.
func (t *tree) compare(p *Plan, e edits) error {
	v := t.original()
	want := e.files
	for _, old := range t.rec.Files {
		if _, ok := want[old.Path]; ok {
			continue
		}
		data, ok, err := v.read(old.Path)
		if err != nil {
			return err
		}
		if want == nil {
			want = make(map[string][]byte)
		}
		if want[old.Path] = data; !ok {
			want[old.Path] = nil
		}
	}
	for file, content := range want {
		data, ok, err := t.read(file)
		if err != nil {
			return err
		}
		if sum(data, ok) != sum(content, content != nil) {
			p.Changes = append(p.Changes, Change{Path: file, Before: data, After: content})
		}
	}
	sortChanges(p.Changes)
	return nil
}
