package jobs

import (
	"errors"
	"slices"
	"time"

	"github.com/shoal-project/shoal/proto"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotFound: there is no job of that ID here.
	ErrNotFound = errors.New("no such job")
	// ErrInvalid: a Spec that cannot be done; the text says what to change.
	ErrInvalid = errors.New("not a job that can be done")
	// ErrEnded: the job is over and cannot be cancelled.
	ErrEnded = errors.New("the job has ended")
	// ErrBusy: as many jobs wait as may.
	ErrBusy = errors.New("too many jobs")
	// ErrIncomplete: an image of which not all is here.
	ErrIncomplete = errors.New("the image is not complete")
)

// A Spec says what to bring where.
type Spec struct {
	// Images are references, as docker takes them: "alpine:3.20",
	// "ghcr.io/team/app@sha256:…".
	Images []string `json:"images"`
	// Platforms are those to bring of an image that is an index, such as
	// "linux/arm64/v8". Without any, each node brings its own.
	Platforms []string `json:"platforms,omitempty"`
	// AllPlatforms brings everything that an index names, attestations
	// included.
	AllPlatforms bool `json:"allPlatforms,omitempty"`
	// Nodes says which: "" is the node that is asked, "all" all daemons of the
	// fleet, "zone:eu/berlin" those in a zone and in the zones below it, "25%"
	// that share of them all, rounded up.
	Nodes string `json:"nodes,omitempty"`
}

// State is how far a job, one of its images or one of its nodes is.
type State string

// The states. Of a job, Waiting and Running are before its end.
const (
	Waiting   State = "waiting"   // for its turn
	Running   State = "running"   // on its way
	Done      State = "done"      // all of it is there
	Partial   State = "partial"   // some of it is there
	Failed    State = "failed"    // nothing of it is there
	Cancelled State = "cancelled" // by a person
)

// Ended reports whether nothing more will happen.
func (s State) Ended() bool { return s != Waiting && s != Running }

// A Job is images on their way to nodes, as it is at one moment. What a Job
// refers to is never written again: it may be kept.
type Job struct {
	// ID names the job on the node that was asked for it. IDs sort by time, to the second.
	ID string `json:"id"`
	// Spec is what was asked for.
	Spec Spec `json:"spec"`
	// State of the whole: Done if all images are at all nodes, Failed if no
	// image is at any, Partial between.
	State State `json:"state"`
	// Error is why the job as a whole came to nothing, if it is neither of an
	// image nor of a node.
	Error string `json:"error,omitempty"`
	// Created is when it was asked for, Ended when it came to its end.
	Created time.Time `json:"created"`
	Ended   time.Time `json:"ended,omitzero"`
	// Images are those of Spec, in its order.
	Images []ImageState `json:"images"`
	// Nodes are those that Spec.Nodes meant when the job began. Empty before.
	Nodes []NodeState `json:"nodes"`
}

// An ImageState is what was found out about an image.
type ImageState struct {
	// Image is the reference as it was given.
	Image string `json:"image"`
	// Digest is what it named when the job began; all nodes bring that.
	Digest proto.Digest `json:"digest,omitzero"`
	// Stale says why Digest may be out of date; empty if it is not.
	Stale string `json:"stale,omitempty"`
	// State is Failed if the image is not there or no node could bring it.
	State State `json:"state"`
	// Error is why, if the same is wrong everywhere.
	Error string `json:"error,omitempty"`
}

// A NodeState is one node's part of a job.
type NodeState struct {
	// Node is the member's name, ID its peer ID.
	Node string `json:"node"`
	ID   string `json:"id"`
	Zone string `json:"zone,omitempty"`
	// State is Done with all images there, Failed with none, Partial between.
	State State `json:"state"`
	// Error is what is wrong with the node, rather than with an image: it
	// refused, or left.
	Error string `json:"error,omitempty"`
	// Images are those of the job that have a digest, in its order.
	Images []ImageProgress `json:"images,omitempty"`
}

// An ImageProgress is one image on its way to one node.
type ImageProgress struct {
	// Image is the reference as it was given, Digest what it named.
	Image  string       `json:"image"`
	Digest proto.Digest `json:"digest"`
	State  State        `json:"state"`
	// Blobs are the blobs of the image: its manifests, configs and layers, as
	// far as they are known. BlobsDone are those that are there.
	Blobs     int `json:"blobs"`
	BlobsDone int `json:"blobsDone"`
	// Bytes and BytesDone are the same in bytes.
	Bytes     int64 `json:"bytes"`
	BytesDone int64 `json:"bytesDone"`
	// Error is why the image is not all there, if that is not the node's Error.
	Error string `json:"error,omitempty"`
}

// Progress is the sum of the bytes of all images at all nodes, as far as they
// are known: there and in all.
func (j Job) Progress() (done, total int64) {
	for _, n := range j.Nodes {
		for _, i := range n.Images {
			done, total = done+i.BytesDone, total+i.Bytes
		}
	}
	return done, total
}

// consistent reports whether each node has all images that have a digest.
func (job Job) consistent() bool {
	known := 0
	for _, i := range job.Images {
		if !i.Digest.IsZero() {
			known++
		}
	}
	return !slices.ContainsFunc(job.Nodes, func(n NodeState) bool { return len(n.Images) != known })
}

// outcome is the state of something that has parts, all of which have ended.
func outcome(parts int, done int) State {
	switch {
	case done == parts && parts > 0:
		return Done
	case done == 0:
		return Failed
	}
	return Partial
}
