package blocklist

import (
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestMembersAgree: whatever is said where, with whatever clocks, in whatever
// order and how often it is heard: once all have heard all, all say the same.
// And what one who had heard everything said last holds.
func TestMembersAgree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() // files are not what this is about
	rapid.Check(t, func(t *rapid.T) {
		var notes [][]byte
		members := make([]*List, 3)
		for i := range members {
			l, err := New(Config{Dir: dir + "/none", Self: string(rune('a' + i)), Tell: func(n []byte) { notes = append(notes, n) }})
			if err != nil {
				t.Fatal(err)
			}
			members[i] = l
		}
		member := func(what string) *List { return members[rapid.IntRange(0, 2).Draw(t, what)] }
		d := rapid.IntRange(0, 2)
		exchange := func() {
			for _, m := range members[1:] {
				if err := members[0].merge(m.State()); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range members[1:] {
				if err := m.merge(members[0].State()); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"block":   func(t *rapid.T) { member("who").Block(digest(d.Draw(t, "digest")), "r") },
			"unblock": func(t *rapid.T) { member("who").Unblock(digest(d.Draw(t, "digest"))) },
			"stranger": func(t *rapid.T) {
				e := Entry{
					Digest: digest(d.Draw(t, "digest")), Blocked: rapid.Bool().Draw(t, "blocked"),
					By: rapid.SampledFrom([]string{"a", "z", ""}).Draw(t, "by"), Reason: rapid.SampledFrom([]string{"", "r", "\x00"}).Draw(t, "reason"),
					At: time.Unix(rapid.Int64Range(-1e10, 2e10).Draw(t, "at"), 0),
				}
				if err := member("who").note(encode(e)); err != nil {
					t.Fatal(err)
				}
			},
			"hear": func(t *rapid.T) {
				if len(notes) > 0 {
					if err := member("who").note(notes[rapid.IntRange(0, len(notes)-1).Draw(t, "note")]); err != nil {
						t.Fatal(err)
					}
				}
			},
			"merge": func(t *rapid.T) {
				if err := member("to").merge(member("from").State()); err != nil {
					t.Fatal(err)
				}
			},
			"last word": func(t *rapid.T) {
				exchange()
				who, what := member("who"), digest(d.Draw(t, "digest"))
				block := rapid.Bool().Draw(t, "block")
				var err error
				var said []Entry
				if block {
					said, err = who.Block(what, "last")
				} else {
					said, err = who.Unblock(what)
				}
				if said == nil || err == nil {
					return // it could not be said: not blocked, or the year 2100
				}
				exchange()
				for i, m := range members {
					if blocked(m, what) != block {
						t.Fatalf("member %d has not the last word", i)
					}
				}
			},
		})
		exchange()
		for i, m := range members[1:] {
			if !reflect.DeepEqual(m.entries, members[0].entries) {
				t.Fatalf("member %d: %v\nmember 0: %v", i+1, m.entries, members[0].entries)
			}
		}
	})
}
