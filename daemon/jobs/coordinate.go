package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

const (
	// resolveAtOnce is how many tags are looked up at once, resolveWithin how
	// long each may take.
	resolveAtOnce = 8
	resolveWithin = time.Minute
	// firstPause and lastPause are between tries to reach a node that is a
	// member; each is twice the one before.
	firstPause = 500 * time.Millisecond
	lastPause  = 8 * time.Second
	// maxTries bounds how often a node is asked that is there each time and
	// fails each time.
	maxTries = 10
)

var errLeft = errors.New("it has left the fleet")

// coordinate does one job: it finds out what the images are, asks the nodes,
// and gathers what they say. If Run ends, it stops where it is.
func (j *Jobs) coordinate(ctx context.Context, e *entry) {
	j.resolveAll(ctx, e)
	if ctx.Err() == nil {
		if err := j.plan(e); err != nil {
			j.update(e, func(job *Job) { job.Error = err.Error() })
		}
		j.keepOrWarn(e)
		j.askAll(ctx, e)
	}
	if j.ctx.Err() != nil {
		j.keepOrWarn(e) // with the nodes that have ended
		return
	}
	j.finish(e)
}

// resolveAll finds out what the images are that have no digest yet.
func (j *Jobs) resolveAll(ctx context.Context, e *entry) {
	var g errgroup.Group
	g.SetLimit(resolveAtOnce)
	j.mu.Lock()
	images := slices.Clone(e.job.Images)
	j.mu.Unlock()
	for i, image := range images {
		if !image.Digest.IsZero() || image.State.Ended() {
			continue
		}
		g.Go(func() error {
			d, stale, err := j.resolve(ctx, e.refs[i])
			if ctx.Err() != nil {
				return nil
			}
			j.update(e, func(job *Job) {
				s := &job.Images[i]
				if err != nil {
					s.State, s.Error = Failed, err.Error()
					return
				}
				s.State, s.Digest, s.Stale = Running, d.Blob.Digest, stale
			})
			return nil
		})
	}
	_ = g.Wait() // each image has its own error
}

// resolve asks the origin what a reference names. If it cannot be asked, what
// is known of it counts, and stale says why it may be wrong.
func (j *Jobs) resolve(ctx context.Context, ref origin.Ref) (d origin.Descriptor, stale string, err error) {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	if !ref.Digest.IsZero() {
		ref.Tag = ""
		a, err := j.cfg.Gate.Admit(ctx, ref, caller)
		return a.Descriptor, "", err
	}
	err = j.cfg.Gate.Check(ctx, ref, caller)
	if err == nil {
		err = j.cfg.Gate.MayBring(ref)
	}
	if err != nil {
		return d, "", err
	}
	d, err = j.cfg.Origin.Resolve(ctx, ref)
	if err == nil {
		j.learnt(ref, d)
		return d, "", nil
	}
	if answered(err) || ctx.Err() != nil {
		return d, "", err
	}
	a, gerr := j.cfg.Gate.Admit(ctx, ref, caller)
	if gerr != nil {
		return d, "", gerr
	}
	if a.Stale == "" {
		a.Stale = err.Error()
	}
	j.log.Warn("a job goes by what a tag named before", "upstream", ref.Upstream, "repository", ref.Repository,
		"tag", ref.Tag, "digest", a.Blob.Digest, "error", a.Stale)
	return a.Descriptor, a.Stale, nil
}

// answered reports whether err is the word of an origin, or of the
// configuration, rather than the lack of one.
func answered(err error) bool {
	for _, word := range []error{origin.ErrNotFound, origin.ErrDenied, origin.ErrUnknownUpstream, origin.ErrTooLarge, origin.ErrProtocol} {
		if errors.Is(err, word) {
			return true
		}
	}
	return false
}

// learnt remembers the origin's word on a tag.
func (j *Jobs) learnt(ref origin.Ref, d origin.Descriptor) {
	err := j.cfg.Gate.Link(ref.Upstream, ref.Repository, d)
	if j.cfg.SetTag != nil {
		err = errors.Join(err, j.cfg.SetTag(ref.Upstream, ref.Repository, ref.Tag, d))
	}
	if err != nil {
		j.log.Warn("tag not remembered", "upstream", ref.Upstream, "repository", ref.Repository, "tag", ref.Tag, "error", err)
	}
}

// nodes returns the members that s means now, if they are not too many for so
// many images.
func (j *Jobs) nodes(s Spec, images int) ([]proto.Member, error) {
	c, err := parseNodes(s.Nodes)
	if err != nil {
		return nil, err
	}
	found, err := c.among(j.cfg.Members(), j.cfg.Self, strings.Join(s.Images, " "))
	if err == nil && len(found)*images > maxParts {
		return nil, fmt.Errorf("%d images at %d nodes are too many for one job: at most %d together; make several jobs of it", images, len(found), maxParts)
	}
	return found, err
}

// plan says which nodes bring which images, unless that was said before a
// restart.
func (j *Jobs) plan(e *entry) error {
	j.mu.Lock()
	planned, spec, images := len(e.job.Nodes) > 0, e.job.Spec, slices.Clone(e.job.Images)
	j.mu.Unlock()
	var parts []ImageProgress
	for _, i := range images {
		if !i.Digest.IsZero() {
			parts = append(parts, ImageProgress{Image: i.Image, Digest: i.Digest, State: Waiting})
		}
	}
	if planned || len(parts) == 0 {
		return nil
	}
	members, err := j.nodes(spec, len(parts))
	if err != nil {
		return err
	}
	j.update(e, func(job *Job) {
		for _, m := range members {
			job.Nodes = append(job.Nodes, NodeState{Node: m.Name, ID: m.ID, Zone: m.Zone, State: Waiting, Images: parts})
		}
	})
	return nil
}

// askAll has all nodes bring the images, and returns when each has ended.
func (j *Jobs) askAll(ctx context.Context, e *entry) {
	j.mu.Lock()
	o := order{Job: e.job.ID, Platforms: e.job.Spec.Platforms, AllPlatforms: e.job.Spec.AllPlatforms}
	for i, image := range e.job.Images {
		if !image.Digest.IsZero() {
			ref := e.refs[i]
			o.Images = append(o.Images, orderImage{
				Image: image.Image, Upstream: ref.Upstream, Repository: ref.Repository, Tag: ref.Tag, Digest: image.Digest,
			})
			if !ref.Digest.IsZero() {
				o.Images[len(o.Images)-1].Tag = "" // nobody has said that the tag names it
			}
		}
	}
	nodes := slices.Clone(e.job.Nodes)
	j.mu.Unlock()
	var g errgroup.Group
	for n, node := range nodes {
		if node.State.Ended() || len(node.Images) != len(o.Images) {
			continue
		}
		g.Go(func() error {
			if err := j.attend(ctx, e, n, node.ID, o); ctx.Err() == nil {
				j.settle(e, n, err)
				j.keepSoon(e)
			}
			return nil
		})
	}
	_ = g.Wait() // each node has its own error
}

// attend has one node do an order, and asks it again if it fails and comes
// back. The error is of the node.
func (j *Jobs) attend(ctx context.Context, e *entry, n int, id string, o order) error {
	heard, pause := time.Now(), firstPause
	for try := 1; ; try++ {
		news := j.membersNews()
		m, present := j.member(id)
		err := errLeft
		if present {
			err = j.ask(ctx, m, o, func(r report) {
				heard = time.Now()
				j.hear(e, n, r)
			})
			if err == nil || errors.Is(err, errRefused) || ctx.Err() != nil {
				return err
			}
			j.log.Debug("a node does not do its part of a job", "job", o.Job, "peer", id, "error", err)
		}
		left := j.cfg.Patience - time.Since(heard)
		if left <= 0 || try == maxTries {
			return err
		}
		wait := left
		if present {
			wait, pause = min(left, pause), min(2*pause, lastPause)
		}
		if !j.wait(ctx, news, wait) {
			return ctx.Err()
		}
	}
}

// wait returns when the members have changed or after d, and false if ctx ends
// first.
func (j *Jobs) wait(ctx context.Context, news <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-news:
	case <-timer.C:
	}
	return true
}

func (j *Jobs) membersNews() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.news
}

// member returns the member with an ID, if it is alive. This node always is.
func (j *Jobs) member(id string) (proto.Member, bool) {
	if id == j.cfg.Self.ID {
		return j.cfg.Self, true
	}
	for _, m := range j.cfg.Members() {
		if m.ID == id {
			return m, true
		}
	}
	return proto.Member{}, false
}

// hear notes what a node says of an image.
func (j *Jobs) hear(e *entry, n int, r report) {
	if r.Image == nil {
		return
	}
	j.update(e, func(job *Job) {
		node := &job.Nodes[n]
		if r.Index < 0 || r.Index >= len(node.Images) || node.State.Ended() {
			return
		}
		p := *r.Image
		p.Image, p.Digest = node.Images[r.Index].Image, node.Images[r.Index].Digest
		p.Error = shorten(p.Error)
		if p.State != Done && p.State != Failed {
			p.State = Running
		}
		node.State = Running
		node.Images = slices.Clone(node.Images)
		node.Images[r.Index] = p
	})
}

// settle notes that a node has ended its part; err is what is wrong with it.
func (j *Jobs) settle(e *entry, n int, err error) {
	j.update(e, func(job *Job) {
		node := &job.Nodes[n]
		if err != nil {
			node.Error = err.Error()
			j.log.Warn("a node failed a job", "job", job.ID, "peer", node.ID, "name", node.Node, "error", err)
		}
		node.end(Failed)
	})
}

// end ends a node's part, and its images that have not ended as state says.
func (n *NodeState) end(state State) {
	n.Images = slices.Clone(n.Images)
	done := 0
	for i := range n.Images {
		p := &n.Images[i]
		if !p.State.Ended() {
			p.State = state
			if state == Failed && n.Error == "" {
				p.Error = "the node did not say how it ended"
			}
		}
		if p.State == Done {
			done++
		}
	}
	if n.State = outcome(len(n.Images), done); n.State != Done && state == Cancelled {
		n.State = Cancelled
	}
}

// finish ends a job: it says what came of it, and keeps that.
func (j *Jobs) finish(e *entry) {
	j.update(e, func(job *Job) {
		for n := range job.Nodes {
			if !job.Nodes[n].State.Ended() {
				job.Nodes[n].end(Cancelled)
			}
		}
		conclude(job, e.cancelled)
		job.Ended = time.Now().UTC()
	})
	kept := j.keepOrWarn(e)
	j.mu.Lock()
	job := e.job
	if kept {
		e.job.Nodes, e.filed = []NodeState{}, true
	}
	j.mu.Unlock()
	j.log.Info("job has ended", "job", job.ID, "state", string(job.State), "took", job.Ended.Sub(job.Created).Round(time.Millisecond))
	j.prune()
}

// conclude says of a job, all of whose nodes have ended, and of its images what
// came of them.
func conclude(job *Job, cancelled bool) {
	all, done := 0, 0
	next := 0 // among the images of each node
	for i := range job.Images {
		image, there := &job.Images[i], 0
		if !image.Digest.IsZero() {
			there = image.conclude(job.Nodes, next)
			next++
		}
		if image.Digest.IsZero() || len(job.Nodes) == 0 {
			image.State = Failed
		}
		if cancelled && image.State != Done && image.Error == "" {
			image.State = Cancelled
		}
		all, done = all+max(1, len(job.Nodes)), done+there
	}
	if job.State = outcome(all, done); cancelled && job.State != Done {
		job.State, job.Error = Cancelled, ""
	}
}

// conclude says what came of an image at the nodes, and returns at how many it
// is. k is its place among the images of each.
func (i *ImageState) conclude(nodes []NodeState, k int) (there int) {
	said := map[string]bool{}
	for _, n := range nodes {
		said[n.Images[k].Error] = true
		if n.Images[k].State == Done {
			there++
		}
	}
	if i.State = outcome(len(nodes), there); i.State == Failed && len(said) == 1 {
		i.Error = nodes[0].Images[k].Error
	}
	return there
}
