package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
)

func sortChanges(cs []Change) {
	slices.SortFunc(cs, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
}

// Undo plans the way back to what was there before the first New that was
// applied. Files that were edited since are an error that wraps ErrEdited,
// unless force says that the edits may be lost.
func Undo(k Kind, o Options, force bool) (*Plan, error) {
	o, err := o.complete(k)
	if err != nil {
		return nil, err
	}
	t, err := openTree(k, o)
	if err != nil {
		return nil, err
	}
	defer t.close()
	p := &Plan{Kind: k, o: o, undo: true}
	var edited []string
	for _, e := range t.rec.Files {
		data, ok, err := t.read(e.Path)
		if err != nil {
			return nil, err
		}
		was, existed, err := t.before(e)
		if err != nil {
			return nil, err
		}
		if !e.ours(data, ok) && sum(data, ok) != sum(was, existed) && !force {
			edited = append(edited, t.shown(e.Path))
		}
		if sum(data, ok) != sum(was, existed) {
			p.Changes = append(p.Changes, Change{Path: e.Path, Before: data, After: was})
		}
	}
	if len(edited) > 0 {
		return nil, fmt.Errorf("undo %s: %s: %w; what was there before shoal is in the files with %s: put it back by hand, or use --force to lose the edits", k, strings.Join(edited, ", "), ErrEdited, backupSuffix)
	}
	sortChanges(p.Changes)
	p.Restart = t.restartOf(k, p.Changes)
	return p, nil
}

// Apply carries the plan out. It fails, having changed nothing, if the files are
// no longer as they were when it was made. It may be carried out again after a
// failure, and taken back.
func (p *Plan) Apply() error {
	t, err := openTree(p.Kind, p.o)
	if err != nil {
		return err
	}
	defer t.close()
	unlock, err := t.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := t.loadRecord(); err != nil { // of whoever had the lock
		return err
	}
	for _, c := range p.Changes {
		data, ok, err := t.read(c.Path)
		if err != nil {
			return err
		}
		if sum(data, ok) != sum(c.Before, c.Before != nil) {
			return fmt.Errorf("%s has just been changed by somebody else: nothing was written; run the command again", t.shown(c.Path))
		}
	}
	if !p.undo {
		if len(p.Changes) == 0 {
			return nil
		}
		if err := t.prepare(p.Changes); err != nil {
			return err
		}
	}
	for _, c := range p.Changes {
		if err := t.change(c); err != nil {
			return fmt.Errorf("%w; what was written so far is taken back by --undo", err)
		}
	}
	return t.settle()
}

// lock keeps a second shoal configure out.
func (t *tree) lock() (func(), error) {
	f, err := t.root.Open(".")
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another shoal configure is at work below %s: %w", t.o.Root, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // which unlocks
}

// prepare writes the backups and the record, before anything is changed.
func (t *tree) prepare(changes []Change) error {
	old := t.rec.Mirror
	t.rec.Version, t.rec.Mirror = recordVersion, t.o.Mirror
	t.rec.Note = "what shoal configure changed; shoal configure --undo needs it"
	for _, c := range changes {
		dirs, err := t.missing(c.Path)
		if err != nil {
			return err
		}
		for _, d := range dirs {
			if !slices.Contains(t.rec.Dirs, d) {
				t.rec.Dirs = append(t.rec.Dirs, d)
			}
		}
		i := slices.IndexFunc(t.rec.Files, func(e entry) bool { return e.Path == c.Path })
		if i < 0 {
			e, err := t.keep(c, old)
			if err != nil {
				return err
			}
			t.rec.Files = append(t.rec.Files, e)
			i = len(t.rec.Files) - 1
		}
		e := &t.rec.Files[i]
		if c.Before != nil && !e.ours(c.Before, true) {
			// Edited since: those edits are what is there before this run.
			kept, err := t.keep(c, old)
			if err != nil {
				return err
			}
			*e = kept
		}
		e.Prior = e.After
		e.After = sum(c.After, c.After != nil)
	}
	if err := t.mkdir(path.Dir(t.at)); err != nil {
		return err
	}
	return t.saveRecord()
}

// keep makes the backup of a file and returns its entry. mirror is that of the
// run before.
func (t *tree) keep(c Change, mirror string) (entry, error) {
	e := entry{Path: c.Path, Existed: c.Before != nil, Before: sum(c.Before, c.Before != nil), Was: owned{Mode: 0o644, UID: -1, GID: -1}}
	if !e.Existed {
		return e, nil
	}
	var err error
	if e.Was, err = t.owned(c.Path); err != nil {
		return e, err
	}
	base := c.Before
	if old, ok := t.rec.entry(c.Path); ok {
		// The file is one of ours that was edited: what is kept is the edited
		// text without what is ours.
		base = withoutMirror(path.Base(c.Path), base, mirror)
		e.Before, e.After = sum(base, true), old.After
	}
	return e, t.write(c.Path+backupSuffix, base, e.Was)
}

func (t *tree) saveRecord() error {
	data, err := json.MarshalIndent(t.rec, "", "  ")
	if err != nil {
		return err
	}
	return t.write(t.at, append(data, '\n'), owned{Mode: 0o600, UID: -1, GID: -1})
}

// mkdir makes a folder, and is done if it is there.
func (t *tree) mkdir(dir string) error {
	if err := t.root.MkdirAll(local(dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return t.explain(dir, err)
	}
	return nil
}

// change makes one file what it shall be.
func (t *tree) change(c Change) error {
	if c.After == nil {
		if err := t.root.Remove(local(c.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return t.explain(c.Path, err)
		}
		return nil
	}
	if err := t.mkdir(path.Dir(c.Path)); err != nil {
		return err
	}
	w := owned{Mode: 0o644, UID: -1, GID: -1}
	if e, ok := t.rec.entry(c.Path); ok {
		w = e.Was
	}
	return t.write(c.Path, c.After, w)
}

// settle drops from the record what is again as it was, with its backup, and
// the folders that are of no more use.
func (t *tree) settle() error {
	var left []entry
	var errs []error
	for _, e := range t.rec.Files {
		data, ok, err := t.read(e.Path)
		if err != nil || sum(data, ok) != e.Before {
			errs = append(errs, err)
			left = append(left, e)
			continue
		}
		if e.Existed {
			errs = append(errs, ignore(t.root.Remove(local(e.Path+backupSuffix)), fs.ErrNotExist))
		}
	}
	t.rec.Files = left
	if len(left) == 0 {
		errs = append(errs, ignore(t.root.Remove(local(t.at)), fs.ErrNotExist))
	}
	var dirs []string
	for _, d := range slices.Backward(t.rec.Dirs) {
		// One that somebody else has put something into stays, as theirs.
		err := t.root.Remove(local(d))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			dirs = append(dirs, d)
			errs = append(errs, ignore(err, syscall.ENOTEMPTY, fs.ErrExist))
		}
	}
	slices.Reverse(dirs)
	t.rec.Dirs = dirs
	if len(left) > 0 {
		errs = append(errs, t.saveRecord())
	}
	return errors.Join(errs...)
}

// ignore returns err unless it is one of those.
func ignore(err error, those ...error) error {
	for _, e := range those {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}
