package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/admin"
)

// printError writes err for a person, each of several on a line of its own.
func printError(w io.Writer, err error) {
	for line := range strings.SplitSeq(strings.TrimRight(err.Error(), "\n"), "\n") {
		fmt.Fprintf(w, "shoal: %s\n", line)
	}
}

// exitCode returns the exit code for err.
func exitCode(err error) int {
	var usage usageError
	var cut interrupted
	switch {
	case err == nil:
		return 0
	case errors.As(err, &cut):
		return 128 + int(cut.signal)
	case errors.As(err, &usage):
		return 2
	}
	return 1
}

// newLog returns the process's logger as the configuration has it, to w.
func newLog(c daemon.LogConfig, w *os.File) *slog.Logger {
	var level slog.Level
	// Validate let four words through, and slog knows all of them.
	_ = level.UnmarshalText([]byte(c.Level))
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: durationAsText}
	if c.Format == "text" || c.Format == "auto" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// durationAsText makes JSON say "20s" rather than 20000000000.
func durationAsText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

func isTerminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// printJSON writes an answer of the API for programs.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printStatus writes a node's status for a person.
func printStatus(w io.Writer, s admin.Status) error {
	ready := "ready"
	if !s.Ready {
		ready = "not ready: " + s.Reason
	}
	fmt.Fprintf(w, "%s (%s, shoal %s) is %s, up %s\n", s.Name, s.Roles, s.Version, ready, time.Duration(s.UptimeSeconds*float64(time.Second)).Round(time.Second))
	fmt.Fprintf(w, "bytes: %s from origins, %s from peers (%s seeds, %s this zone, %s other zones), %s from disk, %s for nothing\n",
		size(s.Bytes.Origin), size(s.Bytes.Peers()), size(s.Bytes.Seed), size(s.Bytes.Zone), size(s.Bytes.Far),
		size(s.Bytes.Disk), size(s.Bytes.Duplicate))
	fmt.Fprintf(w, "schedules %d blobs for %d members\n", s.Scheduler.Swarms, s.Scheduler.Nodes)

	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\nMEMBER\tROLES\tZONE\tADDRESS\tID\n")
	for _, m := range s.Members {
		name := m.Name
		if m.ID == s.ID {
			name += " (this node)"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", name, m.Roles, dash(m.Zone), m.Addr, m.ID)
	}
	if len(s.Pulls) > 0 {
		fmt.Fprintf(tw, "\nPULL\tHERE\tFROM ORIGIN\tFROM PEERS\tOF\n")
		for _, p := range s.Pulls {
			fmt.Fprintf(tw, "%s\t%s of %s\t%s\t%s\t%s\n", short(p.Digest.String()), size(p.Have), size(p.Size), size(p.FromOrigin), size(p.FromPeers), p.Origin)
		}
	}
	return tw.Flush()
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// short cuts a digest to what tells blobs apart on a screen.
func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19]
	}
	return digest
}
