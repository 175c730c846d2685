package report

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// Table writes what a person wants to know, the times of the nodes first.
func (r *Result) Table(w io.Writer) error {
	var b strings.Builder
	r.headline(&b)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	r.times(t)
	r.traffic(t)
	r.costs(t)
	_ = t.Flush() // a strings.Builder takes everything
	r.failures(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Result) headline(w io.Writer) {
	p := r.Params
	fmt.Fprintf(w, "%s: %s, %s in %s; nodes %s, origin %s", cmp.Or(r.Kind, "rollout"),
		plural(p.Nodes, "node"), formatSize(p.Size), plural(max(p.Layers, 1), "layer"), formatRate(p.NodeRate), formatRate(p.OriginRate))
	if p.SeedRate > 0 && p.Mode == ModeShoal {
		fmt.Fprintf(w, ", seed %s", formatRate(p.SeedRate))
	}
	if p.SlowNodes > 0 {
		fmt.Fprintf(w, "; %d of them %s", p.SlowNodes, formatRate(p.SlowRate))
	}
	if p.Zones > 1 {
		fmt.Fprintf(w, "; %d zones", p.Zones)
		if p.CrossZoneRate > 0 {
			fmt.Fprintf(w, " with %s between them", formatRate(p.CrossZoneRate))
		}
	}
	if p.Delay > 0 {
		fmt.Fprintf(w, "; delay %s", formatSeconds(p.Delay))
	}
	fmt.Fprintf(w, "; %s, arrival %s", cmp.Or(p.Mode, ModeShoal), cmp.Or(p.Arrival, "together"))
	if p.Security != "" {
		fmt.Fprintf(w, ", security %s", p.Security)
	}
	if p.Congestion != "" {
		fmt.Fprintf(w, ", TCP %s", p.Congestion)
	}
	if p.Warm {
		fmt.Fprintf(w, ", warm")
	}
	fmt.Fprintln(w)
	for _, f := range r.Faults {
		fmt.Fprintf(w, "fault: %s\n", f)
	}
	fmt.Fprintln(w)
}

// late reports whether the nodes did not all arrive at the start.
func (r *Result) late() bool { return strings.HasPrefix(r.Params.Arrival, "poisson") }

func (r *Result) times(w io.Writer) {
	own := r.own()
	what := ""
	if r.late() {
		what = "  of its own time"
	}
	fmt.Fprintf(w, "last node\t%s%s\n", formatSeconds(quantile(own, 1)), what)
	for _, q := range []float64{0.999, 0.99, 0.5} {
		fmt.Fprintf(w, "p%g\t%s%s\n", math.Round(q*1000)/10, formatSeconds(quantile(own, q)), r.against(quantile(own, q)))
	}
	fmt.Fprintf(w, "first node\t%s\n", formatSeconds(quantile(own, 0)))
	fmt.Fprintf(w, "bound\t%s\n", formatSeconds(r.Bound))
	switch {
	case r.Failed() > 0:
		fmt.Fprintf(w, "ratio\t-  %s failed\n", plural(r.Failed(), "node"))
	case r.late():
	case r.Ratio() > 0:
		fmt.Fprintf(w, "ratio\t%.3f  last / bound\n", r.Ratio())
	}
	if r.late() {
		ratio, name := r.worstOwn()
		fmt.Fprintf(w, "worst own time\t%.3f of its own bound (%s)\n", ratio, name)
		l := r.little()
		verdict := "L = λW holds"
		if l.offBy > 0.01 {
			verdict = fmt.Sprintf("L differs from λW by %.1f %%", 100*l.offBy)
		}
		fmt.Fprintf(w, "Little's law\tλ %.3g/s, W %s, L %.4g; %s\n", l.lambda, formatSeconds(l.w), l.l, verdict)
	}
	if r.Params.SlowNodes > 0 {
		if last, ratio := r.others(); ratio > 0 {
			fmt.Fprintf(w, "last of the others\t%s  %.3f of their bound\n", formatSeconds(last), ratio)
		}
	}
}

// against says how a time compares with the bound, if that makes sense.
func (r *Result) against(t float64) string {
	if r.late() || r.Ratio() == 0 {
		return ""
	}
	return fmt.Sprintf("  %.3f of the bound", t/r.Bound)
}

func (r *Result) traffic(w io.Writer) {
	fmt.Fprintf(w, "copies from the origin\t%.3f\n", r.Copies())
	sum := r.bytes()
	total := max(sum.Origin+sum.Seed+sum.Zone+sum.Far+sum.Disk, 1)
	fmt.Fprintf(w, "bytes by source\t")
	sep := ""
	for _, s := range []struct {
		name string
		n    int64
	}{
		{"origin", sum.Origin}, {"seed", sum.Seed}, {"peers in the zone", sum.Zone},
		{"peers across zones", sum.Far}, {"disk", sum.Disk},
	} {
		fmt.Fprintf(w, "%s%s %s (%.1f %%)", sep, s.name, formatSize(s.n), 100*float64(s.n)/float64(total))
		sep = ", "
	}
	fmt.Fprintf(w, "\nduplicates\t%.2f %%\n", 100*float64(sum.Duplicate)/float64(total))
	if r.Params.Zones > 1 {
		fmt.Fprintf(w, "copies into each zone\t")
		sep, worst := "", 0.0
		crossings := r.crossings()
		for i, c := range crossings {
			worst = max(worst, c.copies)
			if i < 8 {
				fmt.Fprintf(w, "%s%s %.2f", sep, c.zone, c.copies)
				sep = ", "
			}
		}
		if len(crossings) > 8 {
			fmt.Fprintf(w, ", …; at most %.2f", worst)
		}
		fmt.Fprintln(w)
	}
	resumed := 0
	for i := range r.Nodes {
		resumed += r.Nodes[i].Resumed
	}
	if resumed > 0 {
		fmt.Fprintf(w, "requests begun again\t%d\n", resumed)
	}
	if share, seconds, name := r.worstSilence(); name != "" {
		fmt.Fprintf(w, "longest silence\t%s, %.1f %% of its pull (%s)\n", formatSeconds(seconds), 100*share, name)
	}
}

func (r *Result) costs(w io.Writer) {
	cpu, rss := 0.0, int64(0)
	for i := range r.Nodes {
		cpu += r.Nodes[i].CPU
		rss = max(rss, r.Nodes[i].RSS)
	}
	if r.Scheduler != nil {
		cpu += r.Scheduler.CPU
	}
	if cpu > 0 {
		sum := r.bytes()
		delivered := float64(sum.Origin+sum.Seed+sum.Zone+sum.Far+sum.Disk) / (1 << 30)
		fmt.Fprintf(w, "CPU\t%.1f s, %.2f s per GiB delivered\n", cpu, cpu/max(delivered, 1e-9))
	}
	if r.Busy > 0 {
		fmt.Fprintf(w, "cores\t%.0f %% busy", 100*r.Busy)
		if r.Busy > 0.9 {
			fmt.Fprint(w, ": this machine was part of what was measured")
		}
		fmt.Fprintln(w)
	}
	if r.Params.Files != "" {
		fmt.Fprintf(w, "files\t%s\n", r.Params.Files)
	}
	if rss > 0 {
		fmt.Fprintf(w, "largest RSS\t%s of a daemon", formatSize(rss))
		if r.Scheduler != nil && r.Scheduler.RSS > 0 {
			fmt.Fprintf(w, ", %s of the scheduler", formatSize(r.Scheduler.RSS))
		}
		fmt.Fprintln(w)
	}
	if r.Grants > 0 {
		fmt.Fprintf(w, "decisions\t%d leases, %.1f µs each, %.0f a second; %.2f s of CPU in all\n", r.Grants,
			1e6*r.GrantSeconds/float64(r.Grants), float64(r.Grants)/max(r.GrantSeconds, 1e-9), r.GrantSeconds)
	}
	if r.SchedulerMemory > 0 {
		fmt.Fprintf(w, "the scheduler's tables\t%s\n", formatSize(r.SchedulerMemory))
	}
}

// failures lists the nodes that failed, at most ten of them.
func (r *Result) failures(w io.Writer) {
	const most = 10
	n := 0
	for i := range r.Nodes {
		node := &r.Nodes[i]
		if node.Done > 0 {
			continue
		}
		what := "failed"
		if node.Killed {
			what = "is not counted"
		}
		if n++; n <= most {
			fmt.Fprintf(w, "%s %s: %s\n", node.Name, what, cmp.Or(node.Error, "it did not get everything"))
		}
	}
	if n > most {
		fmt.Fprintf(w, "and %d more\n", n-most)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// formatSeconds keeps three or four digits that matter.
func formatSeconds(s float64) string {
	switch {
	case math.IsInf(s, 0) || math.IsNaN(s):
		return "-"
	case s == 0:
		return "0 s"
	case s < 0.0995:
		return fmt.Sprintf("%.3g ms", 1000*s)
	case s < 100:
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.0f s", s)
}

// formatRate writes bytes per second as bits per second, as links are sold.
func formatRate(bytes float64) string {
	if bytes <= 0 {
		return "unshaped"
	}
	bits := 8 * bytes
	units := []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"}
	i := 0
	for ; bits >= 1000 && i < len(units)-1; i++ {
		bits /= 1000
	}
	return fmt.Sprintf("%.4g %s", bits, units[i])
}

// formatSize writes bytes in binary units.
func formatSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v := float64(n)
	i := 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if slices.Contains(units[:1], units[i]) || v == math.Trunc(v) {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
