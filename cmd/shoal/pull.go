package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/jobs"
)

type pullCmd struct {
	nodeFlag
	Images       []string `arg:"" name:"image" help:"references, as docker takes them: alpine:3.20, ghcr.io/team/app@sha256:…"`
	Platform     []string `xor:"platform" placeholder:"OS/ARCH" help:"of an image for several platforms bring this one, such as linux/arm64; may be given several times (default: each node's own)"`
	AllPlatforms bool     `xor:"platform" help:"bring all platforms"`
	Nodes        string   `placeholder:"WHICH" help:"all, zone:eu/berlin (a zone and those in it) or 25% (of all) (default: the node that is asked)"`
	Detach       bool     `short:"d" help:"print the ID of the job and return; shoal jobs ID shows how far it is"`
}

// Help is kong's longer text.
func (pullCmd) Help() string {
	return "Brings images to the cache of a node, or of many, before somebody asks for them. The nodes do it by themselves: this command may be interrupted."
}

// Run starts the job and, unless it is detached, waits for it. It fails if not
// all images are at all nodes.
func (c *pullCmd) Run() error {
	ctx, stop := interruptible()
	defer stop()
	j, err := c.client().StartJob(ctx, jobs.Spec{
		Images: c.Images, Platforms: c.Platform, AllPlatforms: c.AllPlatforms, Nodes: c.Nodes,
	})
	if no := (*admin.Refusal)(nil); errors.As(err, &no) && no.Status == http.StatusBadRequest {
		return usageError{err}
	}
	if err != nil {
		return orCut(ctx, err)
	}
	if c.Detach {
		_, err := fmt.Fprintln(os.Stdout, j.ID)
		return err
	}
	return follow(ctx, c.client(), j.ID)
}

// follow shows how far a job is until it has ended, and then what came of it.
func follow(ctx context.Context, client *admin.Client, id string) error {
	m := newMeter(os.Stderr)
	defer m.close()
	var last jobs.Job
	for j, err := range client.WatchJob(ctx, id) {
		if cut := (interrupted{}); errors.As(context.Cause(ctx), &cut) {
			return fmt.Errorf("%w; job %s goes on without this command; `shoal jobs %s` shows it, with --cancel it ends", cut, id, id)
		}
		if err != nil {
			return err
		}
		for _, i := range j.Images {
			done, total := imageBytes(j, i.Image)
			m.show(i.Image, done, total)
		}
		last = j
	}
	m.close()
	printPulled(os.Stdout, last)
	return unfinished(last)
}

// imageBytes returns how many bytes of an image are at the nodes of a job, and
// how many are to be.
func imageBytes(j jobs.Job, image string) (done, total int64) {
	for _, n := range j.Nodes {
		for _, i := range n.Images {
			if i.Image == image {
				done, total = done+i.BytesDone, total+i.Bytes
			}
		}
	}
	return done, total
}

// unfinished returns an error with a line for each thing that kept an image
// from being at a node, or nil if the job brought all.
func unfinished(j jobs.Job) error {
	var errs []error
	if j.Error != "" {
		errs = append(errs, errors.New(j.Error))
	}
	for _, i := range j.Images {
		if i.Error != "" {
			errs = append(errs, fmt.Errorf("%s: %s", i.Image, i.Error))
		}
	}
	for _, n := range j.Nodes {
		if n.Error != "" {
			errs = append(errs, fmt.Errorf("node %s: %s", n.Node, n.Error))
		}
		for _, i := range n.Images {
			everywhere := slices.ContainsFunc(j.Images, func(s jobs.ImageState) bool { return s.Image == i.Image && s.Error != "" })
			if i.Error != "" && !everywhere {
				errs = append(errs, fmt.Errorf("%s at node %s: %s", i.Image, n.Node, i.Error))
			}
		}
	}
	switch {
	case j.State == jobs.Cancelled:
		errs = append(errs, fmt.Errorf("job %s was cancelled", j.ID))
	case j.State != jobs.Done && len(errs) == 0:
		errs = append(errs, fmt.Errorf("job %s is %s", j.ID, j.State))
	}
	return errors.Join(errs...)
}
