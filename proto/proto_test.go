package proto

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	hex64  = strings.Repeat("0123456789abcdef", 4)
	hex128 = hex64 + hex64
)

func TestParseDigest(t *testing.T) {
	for _, tc := range []struct {
		in, wrong string
	}{
		{"sha256:" + hex64, ""},
		{"sha512:" + hex128, ""},
		{"", "no algorithm"},
		{"sha256", "no algorithm"},
		{"sha256:", "0 hexadecimal"},
		{"md5:" + hex64[:32], "not supported: use sha256 or sha512"},
		{"sha256:" + hex64[1:], "63 hexadecimal"},
		{"sha256:" + hex128, "128 hexadecimal"},
		{"sha256:" + strings.ToUpper(hex64), "lower-case"},
		{"sha256:" + hex64[:61] + "../", "lower-case"},
		{"SHA256:" + hex64, "not supported"},
		{strings.Repeat("x", 1<<20) + ":", "not supported"},
	} {
		d, err := ParseDigest(tc.in)
		switch {
		case tc.wrong == "" && (err != nil || d.String() != tc.in):
			t.Errorf("ParseDigest(%q) = %v, %v", tc.in, d, err)
		case tc.wrong != "" && (err == nil || !strings.Contains(err.Error(), tc.wrong) || !d.IsZero()):
			t.Errorf("ParseDigest(%.80q) = %v, %v, want an error with %q", tc.in, d, err, tc.wrong)
		case err != nil && len(err.Error()) > 300:
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	}
}

func TestDigestMatches(t *testing.T) {
	// The hashes of "content", by sha256sum and sha512sum.
	for _, text := range []string{
		"sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73",
		"sha512:b2d1d285b5199c85f988d03649c37e44fd3dde01e5d69c50fef90651962f48110e9340b60d49a479c4c0b53f5f07d690686dd87d2481937a512e8b85ee7c617f",
	} {
		d, err := ParseDigest(text)
		if err != nil {
			t.Fatal(err)
		}
		h := d.NewHash()
		_, _ = io.WriteString(h, "content")
		if !d.Matches(h) {
			t.Errorf("%s does not match its own content", d)
		}
		_, _ = io.WriteString(h, "!")
		if d.Matches(h) {
			t.Errorf("%s matches other content", d)
		}
	}
}

func TestChunkSize(t *testing.T) {
	const KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
	for _, tc := range []struct{ size, chunk, chunks int64 }{
		{0, 256 * KiB, 0},
		{1, 256 * KiB, 1},
		{256 * KiB, 256 * KiB, 1},
		{256*KiB + 1, 256 * KiB, 2},
		{32 * MiB, 256 * KiB, 128},
		{32*MiB + 128, 512 * KiB, 65},
		{64 * MiB, 512 * KiB, 128},
		{100 * MiB, 1 * MiB, 100},
		{1 * GiB, 8 * MiB, 128},
		{3 * GiB, 8 * MiB, 384},
		{MaxBlob, 8 * MiB, 131072},
	} {
		b := Blob{Digest: DigestOf(nil), Size: tc.size}
		if b.ChunkSize() != tc.chunk || int64(b.Chunks()) != tc.chunks {
			t.Errorf("%d bytes: chunks of %d, %d of them, want %d and %d", tc.size, b.ChunkSize(), b.Chunks(), tc.chunk, tc.chunks)
		}
	}
}

// TestChunksCover: the chunks of a blob, and any runs that follow each other,
// cover it without gap or overlap.
func TestChunksCover(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Blob{Digest: DigestOf(nil), Size: rapid.Int64Range(0, 5<<30).Draw(t, "size")}
		var end int64
		for i := 0; i < b.Chunks(); {
			r := Run{Blob: b, First: i, Count: rapid.IntRange(1, b.Chunks()-i).Draw(t, "count")}
			if err := r.Validate(); err != nil {
				t.Fatal(err)
			}
			first, last := b.Chunk(i), b.Chunk(i+r.Count-1)
			if r.Offset() != end || first.Offset != end || last.Offset+last.Size != end+r.Size() {
				t.Fatalf("run %d+%d is at %d, %d long; chunks from %d to %d, after %d",
					r.First, r.Count, r.Offset(), r.Size(), first.Offset, last.Offset+last.Size, end)
			}
			end += r.Size()
			i += r.Count
		}
		if end != b.Size {
			t.Fatalf("chunks end at %d of %d", end, b.Size)
		}
	})
}

func TestSetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "n")
		s, model := NewSet(n), make(map[int]bool)
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			i := rapid.IntRange(0, n-1).Draw(t, "i")
			if rapid.Bool().Draw(t, "add") {
				s.Add(i)
				model[i] = true
			} else {
				s.Remove(i)
				delete(model, i)
			}
		}
		next, missing := n, n
		from := rapid.IntRange(0, n).Draw(t, "from")
		for i := n - 1; i >= 0; i-- {
			if s.Has(i) != model[i] {
				t.Fatalf("Has(%d) = %v", i, s.Has(i))
			}
			if i >= from && model[i] {
				next = i
			}
			if i >= from && !model[i] {
				missing = i
			}
		}
		if s.Count() != len(model) {
			t.Fatalf("Count = %d, want %d", s.Count(), len(model))
		}
		if got := s.Next(from); got != next && (got != -1 || next != n) {
			t.Fatalf("Next(%d) = %d, want %d", from, got, next)
		}
		if got := s.NextMissing(from, n); got != missing && (got != -1 || missing != n) {
			t.Fatalf("NextMissing(%d) = %d, want %d", from, got, missing)
		}
		if f := FullSet(n); f.Count() != n || f.Has(n) || f.NextMissing(0, n) != -1 {
			t.Fatalf("FullSet(%d) = %v", n, f)
		}
	})
}

func everyMessage() []Message {
	d := DigestOf([]byte("x"))
	b := Blob{Digest: d, Size: 3 << 30}
	o := Origin{Upstream: "docker.io", Repository: "library/alpine", Manifest: true}
	return []Message{
		&Hello{Min: 1, Max: 2, Node: Member{ID: "id", Name: "n", Zone: "eu/berlin", Roles: 3, Addr: "10.0.0.1:7051"}},
		&Welcome{Version: 1}, &Bye{Reason: "over"}, &Ping{Seq: 7}, &Pong{Seq: 7},
		&Hold{Blobs: []Blob{b, {Digest: d}}},
		&Join{Blob: b, Origin: o, Have: Set{5, 6}, Flight: Set{8}, Await: -1, Seed: true},
		&Done{Digest: d, Lease: 1 << 60, Index: 383, Sum: Sum{1}, Took: 42 * time.Millisecond},
		&Fail{Digest: d, Lease: 3, Cause: CauseStalled}, &Await{Digest: d, Index: 9}, &Part{Digest: d},
		&Decline{Digest: d, Reason: "no"}, &Sums{Digest: d, First: 2, Sums: []Sum{{1}, {}, {2}}},
		&Lease{ID: 9, Digest: d, First: 3, Count: 2, Source: "id", Addr: "h:1", Within: time.Second, Sums: []Sum{{1}, {2}}, Early: 19 * time.Millisecond},
		&Near{Digest: d, Lease: 9},
		&Revoke{Digest: d, Lease: 9}, &Call{Blob: b, Origin: o}, &Ask{Digest: d},
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	var stream []byte
	for _, m := range everyMessage() {
		stream = AppendMessage(stream, m)
	}
	r := bytes.NewReader(stream)
	var buf []byte
	for _, want := range everyMessage() {
		var got Message
		var err error
		got, buf, err = ReadMessage(r, buf)
		if err != nil {
			t.Fatalf("%T: %v", want, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if _, _, err := ReadMessage(r, buf); err != io.EOF {
		t.Errorf("after the last frame: %v, want io.EOF", err)
	}
}

func TestLaterVersionsMayAddFields(t *testing.T) {
	frame := AppendMessage(nil, &Ping{Seq: 5})
	frame = append(frame, 1, 2, 3)
	frame[3] += 3
	m, _, err := ReadMessage(bytes.NewReader(frame), nil)
	if p, ok := m.(*Ping); err != nil || !ok || p.Seq != 5 {
		t.Errorf("a longer ping is %+v, %v", m, err)
	}
}

func TestMalformedFrames(t *testing.T) {
	join := AppendMessage(nil, &Join{Blob: Blob{Digest: DigestOf(nil), Size: 10}, Have: Set{2}, Await: -1})
	lease := AppendMessage(nil, &Lease{Digest: DigestOf(nil), Count: 2, Sums: []Sum{{1}}})
	for name, frame := range map[string][]byte{
		"empty frame":                  {0, 0, 0, 0},
		"frame over the limit":         {0, 4, 0, 1, 1},
		"unknown kind":                 {0, 0, 0, 1, 200},
		"number cut short":             {0, 0, 0, 2, byte(kindPing), 0x80},
		"digest that is none":          {0, 0, 0, 4, byte(kindPart), 2, 'h', 'i'},
		"chunks that the blob has not": join,
		"sums for other chunks":        lease,
	} {
		if m, _, err := ReadMessage(bytes.NewReader(frame), nil); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %+v, %v, want ErrFrame", name, m, err)
		}
	}
	whole := AppendMessage(nil, everyMessage()[0])
	for n := 1; n < len(whole); n++ {
		if _, _, err := ReadMessage(bytes.NewReader(whole[:n]), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("stream cut after %d bytes: %v, want io.ErrUnexpectedEOF", n, err)
		}
	}
}

// FuzzReadMessage: whatever comes in, the decoder neither panics nor accepts
// what it would not write itself.
func FuzzReadMessage(f *testing.F) {
	for _, m := range everyMessage() {
		f.Add(AppendMessage(nil, m))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, _, err := ReadMessage(bytes.NewReader(data), nil)
		if err != nil {
			return
		}
		again, _, err := ReadMessage(bytes.NewReader(AppendMessage(nil, m)), nil)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%+v was read and written as %+v, %v", m, again, err)
		}
	})
}

func FuzzParseDigest(f *testing.F) {
	f.Add("sha256:" + hex64)
	f.Add("sha512:" + hex128)
	f.Add("sha256:../../etc/passwd")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if err == nil && (d.String() != s || strings.ContainsAny(d.Hex(), "/.")) {
			t.Fatalf("ParseDigest(%q) = %q", s, d)
		}
	})
}

func BenchmarkFrames(b *testing.B) {
	msgs := everyMessage()
	var stream, buf []byte
	b.ReportAllocs()
	for b.Loop() {
		stream = stream[:0]
		for _, m := range msgs {
			stream = AppendMessage(stream, m)
		}
		r := bytes.NewReader(stream)
		for range msgs {
			var err error
			if _, buf, err = ReadMessage(r, buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N*len(msgs))/b.Elapsed().Seconds(), "messages/s")
}
