package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/shoal-project/shoal/daemon/jobs"
)

// printPulled writes which images a job has brought.
func printPulled(w io.Writer, j jobs.Job) {
	for _, i := range j.Images {
		nodes, bytes := 0, int64(0)
		for _, n := range j.Nodes {
			for _, at := range n.Images {
				if at.Image == i.Image && at.State == jobs.Done {
					nodes++
					bytes = max(bytes, at.BytesDone)
				}
			}
		}
		if nodes == 0 {
			continue
		}
		fmt.Fprintf(w, "%s  %s  %s on %s\n", i.Image, i.Digest, size(bytes), plural(nodes, "node"))
		if i.Stale != "" {
			fmt.Fprintf(w, "  may be out of date: %s\n", i.Stale)
		}
	}
}

// printJobs writes the list of jobs. The API tells the nodes only of those that
// have not ended.
func printJobs(w io.Writer, all []jobs.Job) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no jobs; `shoal pull IMAGE` starts one")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "JOB\tSTATE\tBEGAN\tBYTES\tNODES\tIMAGES\n")
	for _, j := range all {
		bytes, nodes := "-", "this one"
		if done, total := j.Progress(); len(j.Nodes) > 0 {
			bytes = size(done) + " of " + size(total)
		}
		if j.Spec.Nodes != "" {
			nodes = j.Spec.Nodes
		}
		images := strings.Join(j.Spec.Images[:min(2, len(j.Spec.Images))], ", ")
		if more := len(j.Spec.Images) - 2; more > 0 {
			images += fmt.Sprintf(" and %d more", more)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", j.ID, j.State, humanize.Time(j.Created), bytes, nodes, images)
	}
	return tw.Flush()
}

// printJob writes one job with its images and nodes.
func printJob(w io.Writer, j jobs.Job) error {
	took := "for " + time.Since(j.Created).Round(time.Second).String()
	if !j.Ended.IsZero() {
		took = "after " + j.Ended.Sub(j.Created).Round(time.Millisecond).String()
	}
	fmt.Fprintf(w, "job %s is %s %s\n", j.ID, j.State, took)
	if j.Error != "" {
		fmt.Fprintf(w, "  %s\n", j.Error)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\nIMAGE\tSTATE\tDIGEST\n")
	for _, i := range j.Images {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", i.Image, i.State, dash(i.Digest.String()))
	}
	fmt.Fprintf(tw, "\nNODE\tZONE\tSTATE\tBLOBS\tBYTES\n")
	for _, n := range j.Nodes {
		var blobs, blobsDone int
		var bytes, bytesDone int64
		for _, i := range n.Images {
			blobs, blobsDone = blobs+i.Blobs, blobsDone+i.BlobsDone
			bytes, bytesDone = bytes+i.Bytes, bytesDone+i.BytesDone
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d of %d\t%s of %s\n", n.Node, dash(n.Zone), n.State, blobsDone, blobs, size(bytesDone), size(bytes))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if err := unfinished(j); err != nil && j.State.Ended() {
		fmt.Fprintf(w, "\n%s\n", err)
	}
	return nil
}

// plural returns n things, such as "1 node" or "3 nodes".
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return humanize.Comma(int64(n)) + " " + thing + "s"
}
