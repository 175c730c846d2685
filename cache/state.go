package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"

	"github.com/shoal-project/shoal/proto"
)

// The two files beside a blob's bytes start with the same header: 8 bytes that
// say which of them it is, a 32-bit version and the blob's 64-bit size, all
// big-endian.
//
// The state of a partial blob has a record for each chunk after it: one byte,
// 1 if the chunk is in, and its sum. A record that the file does not reach is
// of a chunk that is not in. Each Put writes its record in one piece after the
// chunk's bytes; what a power loss makes of the two is found out by the sum.
//
// The sums of a whole blob are a sum for each chunk and the BLAKE3 of all of
// the file before it: sums that are wrong would make other nodes refuse bytes
// that are right, so damage must show.
const (
	stateMagic = "shoal st"
	sumsMagic  = "shoal su"
	version    = 1

	headerSize = 8 + 4 + 8
	sumSize    = len(proto.Sum{})
	recordSize = 1 + sumSize
)

func appendHeader(to []byte, magic string, size int64) []byte {
	to = append(to, magic...)
	to = binary.BigEndian.AppendUint32(to, version)
	return binary.BigEndian.AppendUint64(to, uint64(size))
}

// cutHeader checks the header of data and returns the size in it and the rest.
func cutHeader(data []byte, magic string) (blobSize, []byte, error) {
	if len(data) < headerSize || string(data[:8]) != magic {
		return 0, nil, fmt.Errorf("no %q header in %d bytes", magic, len(data))
	}
	if v := binary.BigEndian.Uint32(data[8:]); v != version {
		return 0, nil, fmt.Errorf("version %d, this is version %d", v, version)
	}
	size := binary.BigEndian.Uint64(data[12:])
	if size > proto.MaxBlob {
		return 0, nil, fmt.Errorf("size of %d bytes is over %d", size, int64(proto.MaxBlob))
	}
	return blobSize(size), data[headerSize:], nil
}

// A blobSize is a size in bytes that was checked to be one of a blob.
type blobSize int64

func (s blobSize) chunks() int { return proto.Blob{Size: int64(s)}.Chunks() }

// record fills in the record of a chunk that is in.
func record(buf *[recordSize]byte, sum proto.Sum) []byte {
	buf[0] = 1
	copy(buf[1:], sum[:])
	return buf[:]
}

func recordOffset(i int) int64 { return int64(headerSize + i*recordSize) }

// parseState reads a state file. The chunks in have are claimed, no more: the
// caller checks them against sums, which has an element for each chunk.
func parseState(data []byte) (size int64, have proto.Set, sums []proto.Sum, err error) {
	s, data, err := cutHeader(data, stateMagic)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("state: %w", err)
	}
	n := s.chunks()
	if len(data) > n*recordSize {
		return 0, nil, nil, fmt.Errorf("state: %d bytes of records for %d chunks", len(data), n)
	}
	have, sums = proto.NewSet(n), make([]proto.Sum, n)
	for i := 0; len(data) >= recordSize; i++ {
		if data[0] == 1 {
			have.Add(i)
			copy(sums[i][:], data[1:recordSize])
		}
		data = data[recordSize:]
	}
	return int64(s), have, sums, nil
}

// encodeSums returns the content of a sums file.
func encodeSums(size int64, sums []proto.Sum) []byte {
	data := make([]byte, 0, headerSize+(len(sums)+1)*sumSize)
	data = appendHeader(data, sumsMagic, size)
	for _, s := range sums {
		data = append(data, s[:]...)
	}
	check := blake3.Sum256(data)
	return append(data, check[:]...)
}

// parseSums reads a sums file of a blob of the given size.
func parseSums(data []byte, size int64) ([]proto.Sum, error) {
	s, rest, err := cutHeader(data, sumsMagic)
	if err != nil {
		return nil, fmt.Errorf("sums: %w", err)
	}
	n := s.chunks()
	if int64(s) != size || len(rest) != (n+1)*sumSize {
		return nil, fmt.Errorf("sums: %d bytes for a blob of %d bytes, not of %d", len(rest), s, size)
	}
	sums := make([]proto.Sum, n)
	for i := range sums {
		copy(sums[i][:], rest[i*sumSize:])
	}
	if check := blake3.Sum256(data[:len(data)-sumSize]); check != [32]byte(data[len(data)-sumSize:]) {
		return nil, fmt.Errorf("sums: the file is damaged")
	}
	return sums, nil
}

// maxSide bounds the size of a file beside a blob's bytes.
const maxSide = int64(headerSize + (proto.MaxBlob/proto.MaxChunk+1)*recordSize)

// readSide reads a file beside a blob's bytes.
func readSide(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(info.Size(), maxSide+1)) // one byte too many is not a valid file either
	n, err := io.ReadFull(f, data)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return data[:n], nil
}
