package cache

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// The environment of a process that TestKilled kills: its directory and the
// seed of what it does.
const (
	victimDir  = "SHOAL_CACHE_VICTIM"
	victimSeed = "SHOAL_CACHE_VICTIM_SEED"
)

const victimBlobs = 10

func victimBlob(k int) (proto.Blob, []byte) {
	return content(uint64(k), []int{50, 3 * chunk, 4*chunk + 1, 2 * chunk, 6*chunk - 9}[k%5])
}

// victim puts, deletes and links in several goroutines, and says a line for
// each, until it is killed.
func victim() {
	seed, err := strconv.ParseUint(os.Getenv(victimSeed), 10, 64)
	if err != nil {
		panic(err)
	}
	c, err := Open(os.Getenv(victimDir), Options{Quota: Bytes(14 * chunk), Keep: 1}) // half of all
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	unsynced(c) // what was written stays, if only the process dies
	var wg sync.WaitGroup
	for k := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(k)))
			for {
				victimStep(c, rnd)
			}
		})
	}
	wg.Wait()
}

func victimStep(c *Cache, rnd *rand.Rand) {
	blob, data := victimBlob(rnd.IntN(victimBlobs))
	b, err := c.Blob(blob)
	if err != nil {
		panic(err)
	}
	defer b.Release()
	for _, i := range rnd.Perm(blob.Chunks())[:rnd.IntN(blob.Chunks()+1)] {
		err := b.Put(i, piece(blob, data, i))
		if errors.Is(err, ErrFull) { // the others are in use
			break
		}
		if err != nil {
			panic(err)
		}
		fmt.Println("put")
	}
	if rnd.IntN(10) == 0 {
		if _, err := c.GC(context.Background(), GCOptions{}); err != nil {
			panic(err)
		}
		fmt.Println("gc")
	}
	if rnd.IntN(3) > 0 {
		return
	}
	if err := c.Index().SetLinks("u", "r", map[proto.Digest]Link{blob.Digest: {Size: blob.Size}}); err != nil {
		panic(err)
	}
	fmt.Println("link")
	c.Delete(blob.Digest)
	fmt.Println("delete")
}

// A process is killed at some moment, again and again; each time everything
// that is there afterwards is right, nothing is left over, and it goes on.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	chunks := 0
	for range 5 {
		kill(t, dir, rnd.Uint64(), 1+rnd.IntN(150))
		chunks += checkAfterKill(t, dir)
	}
	if chunks == 0 {
		t.Error("nothing survived any of the kills")
	}
	c := open(t, dir)
	for k := range victimBlobs {
		blob, data := victimBlob(k)
		store(t, c, blob, data)
		wantContent(t, get(t, c, blob), data)
	}
}

// kill runs a victim and kills it when it has said so many lines.
func kill(t *testing.T, dir string, seed uint64, lines int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimDir+"="+dir, victimSeed+"="+strconv.FormatUint(seed, 10))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	for lines > 0 && said.Scan() {
		lines--
	}
	cmd.Process.Kill()
	cmd.Wait()
	if lines > 0 {
		t.Fatalf("it ended by itself: %s", stderr.Bytes())
	}
}

// checkAfterKill opens the cache and checks all that is in it. It returns how
// many chunks are.
func checkAfterKill(t *testing.T, dir string) (chunks int) {
	t.Helper()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	names := strings.Join(files(t, dir), "\n") + "\n"
	for _, name := range strings.Fields(names) {
		data, isState := strings.CutSuffix(name, stateSuffix)
		data, isSums := strings.CutSuffix(data, sumsSuffix)
		if (isState || isSums) && !strings.Contains(names, data+"\n") {
			t.Errorf("%s is left over", name)
		}
		if filepath.Dir(filepath.Dir(name)) == "partial" && !isState && !strings.Contains(names, data+stateSuffix+"\n") {
			t.Errorf("%s is left over", name)
		}
	}
	for k := range victimBlobs {
		blob, data := victimBlob(k)
		b, ok := c.Known(blob.Digest)
		if !ok {
			continue
		}
		if b.Whole() {
			wantContent(t, b, data)
		}
		f, err := b.File()
		if err != nil {
			if b.Have().Count() > 0 {
				t.Error(err)
			}
			b.Release()
			continue
		}
		for i := range blob.Chunks() {
			if !b.Has(i) {
				continue
			}
			chunks++
			got := make([]byte, blob.Chunk(i).Size)
			if _, err := f.ReadAt(got, blob.Chunk(i).Offset); err != nil || !bytes.Equal(got, piece(blob, data, i)) {
				t.Errorf("chunk %d of blob %d is wrong: %v", i, k, err)
			}
		}
		f.Close()
		b.Release()
	}
	return chunks
}
