package blocklist

import (
	"strings"
	"testing"
	"time"
)

func seeds(f *testing.F, list bool) {
	one := encode(Entry{Digest: digest(1), Blocked: true, Reason: "bad", By: "a", Of: digest(2), At: time.UnixMilli(1_700_000_000_000)})
	for _, s := range []string{
		"", "null", "{}", "[]", "[", "[{}", `{"digest":"sha256:x"}`, `[1,"a",{"digest":5}]`, string(one), string(one[:len(one)-3]),
		strings.Replace(string(one), "2023", "9999", 1), strings.Replace(string(one), "2023", "-001", 1),
		strings.Replace(string(one), "bad", `\u0000\n\ud800`, 1), strings.Replace(string(one), "sha256", "blake3", 1), strings.Repeat("[", 20000),
		strings.Replace(string(one), "Z", "+14:00", 1),
	} {
		f.Add([]byte(s))
		if list {
			f.Add([]byte("[" + s + "," + string(one) + "]"))
		}
	}
}

// sound fails the test if something is in the list that may not be.
func sound(t *testing.T, l *List) {
	t.Helper()
	for d, e := range l.entries {
		if e.Digest != d || d.IsZero() || e != e.normal() || len(encode(e)) > MaxNote {
			t.Fatalf("entry %+v", e)
		}
		if strings.ContainsAny(e.why(), "\n\r\x00") {
			t.Fatalf("%q", e.why())
		}
	}
	// It can be passed on, and read again.
	again, err := parseFile(encode(append([]Entry{}, l.List()...)))
	if err != nil || len(again) != len(l.List()) {
		t.Fatalf("%v, %v", again, err)
	}
}

func FuzzNote(f *testing.F) {
	seeds(f, false)
	f.Fuzz(func(t *testing.T, data []byte) {
		l := open(t, "/nonexistent", func(c *Config) {
			c.Tell = func(n []byte) {
				if len(n) > MaxNote {
					t.Fatalf("a note of %d bytes", len(n))
				}
			}
		})
		if l.note(data) == nil && len(l.entries) != 1 {
			t.Fatal("a note that was understood is not in the list")
		}
		sound(t, l)
	})
}

func FuzzMerge(f *testing.F) {
	seeds(f, true)
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := open(t, "/nonexistent"), open(t, "/nonexistent")
		_ = a.merge(data) // what came before an error counts
		sound(t, a)
		if err := b.merge(a.State()); err != nil {
			t.Fatal(err)
		}
		if string(a.State()) != string(b.State()) {
			t.Fatalf("%s\n%s", a.State(), b.State())
		}
	})
}

func FuzzFile(f *testing.F) {
	seeds(f, true)
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseFile(data)
		for _, e := range entries {
			if err != nil || e.Digest.IsZero() || e != e.normal() {
				t.Fatalf("%+v, %v", e, err)
			}
		}
	})
}
