//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/proto"
)

// slack is what may be fetched a second time when a process is killed: chunks
// that were half there, and what was in sockets on its way to it.
const slack = 24 * mib

// TestSchedulerKilled: the scheduler, which is also the seed, is killed in the
// middle of a rollout. The nodes go on without it: the pulls succeed, the
// containers run, and what other members have is not fetched from the registry
// again: a dead scheduler is no stampede.
func TestSchedulerKilled(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 48*mib, 24*mib, 24*mib)
	f := startFleet(t, dir, o, 2)
	a := startContainerd(t, dir, "containerd-1", f.daemons[0].Mirror)
	b := startContainerd(t, dir, "containerd-2", f.daemons[1].Mirror)
	o.slow(24 * mib)
	var wg sync.WaitGroup
	wg.Go(func() { pullAll(t, img, a, b) })
	waitFor(t, "a third of the image at the scheduler", func() bool {
		return status(t, f.scheduler).Bytes.Origin > img.size/3
	})
	f.scheduler.Kill()
	wg.Wait()
	img.checkAtMost(t, o, img.size+slack)
	a.runContainer(t, img)
	b.runContainer(t, img)
	f.converge(t, f.daemons...) // they know that it is gone
}

// TestDaemonKilled: one node's daemon is killed in the middle of a rollout. The
// other node does not notice. Started again, it goes on with what it had.
func TestDaemonKilled(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 48*mib, 24*mib, 24*mib)
	f := startFleet(t, dir, o, 2)
	a := startContainerd(t, dir, "containerd-1", f.daemons[0].Mirror)
	b := startContainerd(t, dir, "containerd-2", f.daemons[1].Mirror)
	o.slow(24 * mib)
	var wg sync.WaitGroup
	var cut error
	wg.Go(func() { cut = a.pull(t, img) })
	wg.Go(func() { pullAll(t, img, b) })
	victim := f.daemons[0]
	had := killAfter(t, victim, img.size/2)
	wg.Wait()
	if cut == nil {
		t.Fatal("the pull came too fast to be interrupted")
	}
	img.checkAtMost(t, o, img.size+slack)

	again := f.node(t, "daemon", victim.Name(), f.scheduler.Gossip, sameDoors(victim)...)
	f.converge(t, f.scheduler, again, f.daemons[1])
	pullAll(t, img, a)
	checkResumed(t, again, img, had)
	img.checkAtMost(t, o, img.size+slack)
	a.runContainer(t, img)
	b.runContainer(t, img)
}

// TestLoneDaemonKilled is the same without a fleet: what was there is not
// fetched from the registry again.
func TestLoneDaemonKilled(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 40*mib, 24*mib)
	victim := startAlone(t, dir, o, upstream)
	c := startContainerd(t, dir, "containerd-1", victim.Mirror)
	o.slow(24 * mib)
	done := make(chan error, 1)
	go func() { done <- c.pull(t, img) }()
	had := killAfter(t, victim, img.size/2)
	if <-done == nil {
		t.Fatal("the pull came too fast to be interrupted")
	}
	o.slow(0)
	again := startAlone(t, dir, o, upstream, sameDoors(victim)...)
	pullAll(t, img, c)
	checkResumed(t, again, img, had)
	img.checkAtMost(t, o, img.size+slack)
	c.runContainer(t, img)
}

// killAfter kills a node once it has n bytes, and returns how many it had.
func killAfter(t *testing.T, n *process.Node, bytes int64) (had int64) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%d bytes at %s", bytes, n.Name()), func() bool {
		b := status(t, n).Bytes
		had = b.Origin + b.Peers()
		return had > bytes
	})
	n.Kill()
	return had
}

// sameDoors returns the flags that make a node listen where another one did.
func sameDoors(n *process.Node) []string {
	return []string{"--mirror.listen", n.Mirror, "--admin.listen", n.Admin, "--peer.listen", n.Peers, "--gossip.listen", n.Gossip}
}

// checkResumed checks that a node which had so many bytes of an image when it
// was killed fetched only the others after its restart.
func checkResumed(t *testing.T, n *process.Node, img image, had int64) {
	t.Helper()
	b := status(t, n).Bytes
	got := b.Origin + b.Peers()
	t.Logf("%s had %d of %d bytes when it was killed, and fetched %d after that", n.Name(), had, img.size, got)
	if got > img.size-had+slack {
		t.Errorf("%s fetched %d bytes after its restart, want no more than the missing %d and %d", n.Name(), got, img.size-had, slack)
	}
}

// TestDrain: a daemon that is told to end with SIGTERM in the middle of a
// download lets it come to its end, refuses what is new, leaves the fleet, and
// ends with exit code 0.
func TestDrain(t *testing.T) {
	dir := workDir(t)
	o := startOrigin(t, dir)
	img := o.push(t, "team/app", false, 24*mib)
	f := startFleet(t, dir, o, 1)
	n := f.daemons[0]
	layer := img.layers[1]
	o.slow(2 * mib)
	url := fmt.Sprintf("http://%s/v2/team/app/", n.Mirror)
	resp, err := http.Get(url + "blobs/" + layer.Digest.String() + "?ns=" + upstream)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	digest, err := proto.ParseDigest(layer.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	hash := digest.NewHash()
	if _, err := io.CopyN(hash, resp.Body, mib); err != nil {
		t.Fatal(err)
	}

	n.Terminate()
	waitFor(t, "a new pull to be refused", func() bool {
		fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := fresh.Head(url + "manifests/v1?ns=" + upstream)
		if err != nil {
			return true
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if err := n.Died(); err != nil {
		t.Fatalf("a download was running: %v", err)
	}
	o.slow(0)
	if got, err := io.Copy(hash, resp.Body); err != nil || !digest.Matches(hash) {
		t.Errorf("%d bytes after the first %d of %d, which are the right ones: %t; %v", got, mib, layer.Size, digest.Matches(hash), err)
	}
	if err := n.Wait(startup(t)); err != nil {
		t.Errorf("%s did not end with exit code 0: %v\n%s", n.Name(), err, n.Tail())
	}
	f.converge(t, f.scheduler) // which is alone now
}
