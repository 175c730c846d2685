package cache

import (
	"bytes"
	"testing"

	"github.com/shoal-project/shoal/proto"
)

func FuzzState(f *testing.F) {
	state := appendHeader(nil, stateMagic, 3*chunk)
	f.Add(bytes.Clone(state))
	var rec [recordSize]byte
	for i := range 3 {
		state = append(state, record(&rec, proto.Sum{byte(i)})...)
	}
	f.Add(state)
	f.Add(state[:len(state)-5])
	f.Add(appendHeader(nil, stateMagic, proto.MaxBlob))
	f.Add(appendHeader(nil, sumsMagic, 1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		size, have, sums, err := parseState(data)
		if err != nil {
			return
		}
		b := proto.Blob{Digest: proto.DigestOf(nil), Size: size}
		if err := b.Validate(); err != nil {
			t.Fatal(err)
		}
		if len(sums) != b.Chunks() || have.NextMissing(0, b.Chunks()) < 0 && len(data) < headerSize+b.Chunks()*recordSize {
			t.Fatalf("%d sums, have %v of %d chunks, from %d bytes", len(sums), have, b.Chunks(), len(data))
		}
		if last := have.Next(b.Chunks()); last >= 0 {
			t.Fatalf("chunk %d of %d is in", last, b.Chunks())
		}
		for i := have.Next(0); i >= 0; i = have.Next(i + 1) {
			at := recordOffset(i)
			if !bytes.Equal(data[at:at+int64(recordSize)], record(new([recordSize]byte), sums[i])) {
				t.Fatalf("record %d does not come out as it went in", i)
			}
		}
	})
}

func FuzzSums(f *testing.F) {
	f.Add(encodeSums(3*chunk, make([]proto.Sum, 3)), int64(3*chunk))
	f.Add(encodeSums(3*chunk, make([]proto.Sum, 3)), int64(2*chunk))
	f.Add(encodeSums(3*chunk, make([]proto.Sum, 2)), int64(3*chunk))
	f.Add(encodeSums(0, nil), int64(0))
	f.Add([]byte("shoal su"), int64(1))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		sums, err := parseSums(data, size)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeSums(size, sums), data) {
			t.Fatal("sums do not come out as they went in")
		}
	})
}
