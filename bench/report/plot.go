package report

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Where things are in the plot, in SVG units.
const (
	plotWidth  = 960.0
	plotLeft   = 70.0
	plotRight  = 940.0
	plotTop    = 60.0
	plotBottom = 460.0
	stripRow   = 12.0
	// maxCurves and maxStrips bound what is drawn of a large fleet and of an
	// image with many layers.
	maxCurves = 200
	maxStrips = 16
)

// Plot writes an SVG of each node's progress over time against the bound.
// Below the curves there is a row for each layer, with a mark where each node
// had it complete.
func (r *Result) Plot(w io.Writer) error {
	p := &plot{w: bufio.NewWriter(w), result: r}
	p.curves = r.chosen()
	p.end = r.Bound
	if math.IsInf(p.end, 0) {
		p.end = 0
	}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		p.end = max(p.end, n.Done, n.Arrived)
		if k := len(n.Progress); k > 0 {
			p.end = max(p.end, n.Progress[k-1].At)
		}
	}
	p.end = max(p.end*1.03, 1e-6)
	p.strips = r.layerCount()
	p.draw()
	return p.w.Flush()
}

// chosen returns the nodes whose curves are drawn.
func (r *Result) chosen() []*Node {
	nodes := make([]*Node, len(r.Nodes))
	for i := range r.Nodes {
		nodes[i] = &r.Nodes[i]
	}
	if len(nodes) <= maxCurves {
		return nodes
	}
	finish := func(n *Node) float64 {
		if n.Done == 0 {
			return math.Inf(1)
		}
		return n.Done
	}
	slices.SortStableFunc(nodes, func(a, b *Node) int {
		switch x, y := finish(a), finish(b); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	out := make([]*Node, maxCurves)
	for i := range out {
		out[i] = nodes[i*(len(nodes)-1)/(maxCurves-1)]
	}
	return out
}

func (r *Result) layerCount() int {
	layers := 0
	for i := range r.Nodes {
		layers = max(layers, len(r.Nodes[i].Layers))
	}
	if layers < 2 {
		return 0
	}
	return min(layers, maxStrips)
}

type plot struct {
	w      *bufio.Writer
	result *Result
	curves []*Node
	end    float64 // seconds at the right edge
	strips int     // rows of layers below
}

func (p *plot) printf(format string, args ...any) { fmt.Fprintf(p.w, format, args...) }

func (p *plot) x(seconds float64) float64 {
	return plotLeft + seconds/p.end*(plotRight-plotLeft)
}

func (p *plot) y(share float64) float64 {
	return plotBottom - min(max(share, 0), 1)*(plotBottom-plotTop)
}

func (p *plot) draw() {
	height := plotBottom + 60 + float64(p.strips)*stripRow
	if p.strips > 0 {
		height += 16
	}
	p.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	p.printf("<style>.n{fill:none;stroke:#2a6fbb;stroke-width:1;stroke-opacity:%.2f}.s{stroke:#c77f18}.f{stroke:#c0392b}"+
		".b{stroke:#222;stroke-dasharray:6 4;fill:none}.g{stroke:#ddd}.l{stroke:#2a6fbb;stroke-opacity:.5}</style>\n",
		min(1, max(0.15, 6/float64(max(len(p.curves), 1)))))
	p.printf(`<rect width="100%%" height="100%%" fill="#fff"/>` + "\n")
	p.printf(`<text x="%.0f" y="24" font-size="15">%s</text>`+"\n", plotLeft, escape(p.title()))
	p.axes()
	for _, n := range p.curves {
		p.curve(n)
	}
	p.bound()
	p.legend()
	p.layers()
	p.printf("</svg>\n")
}

func (p *plot) title() string {
	r := p.result
	s := fmt.Sprintf("%s, %s: %s to %s", r.Kind, r.Params.Mode, formatSize(r.ImageBytes), plural(len(r.Nodes), "node"))
	switch {
	case r.Failed() > 0:
		s += fmt.Sprintf(", %d failed", r.Failed())
	case r.late():
		ratio, _ := r.worstOwn()
		s += fmt.Sprintf(", worst own time %.2f × its bound", ratio)
	case r.Ratio() > 0:
		s += fmt.Sprintf(", last node %.2f × the bound", r.Ratio())
	}
	return s
}

func (p *plot) axes() {
	for share := 0; share <= 100; share += 25 {
		y := p.y(float64(share) / 100)
		p.printf(`<line class="g" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/><text x="%.1f" y="%.1f" text-anchor="end">%d %%</text>`+"\n",
			plotLeft, y, plotRight, y, plotLeft-6, y+4, share)
	}
	step := niceStep(p.end / 8)
	for i := 0; float64(i)*step <= p.end; i++ {
		x := p.x(float64(i) * step)
		p.printf(`<line class="g" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/><text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n",
			x, plotTop, x, plotBottom, x, plotBottom+16, tick(float64(i)*step))
	}
}

// tick writes a time at the axis.
func tick(seconds float64) string {
	if seconds > 0 && seconds < 0.1 {
		return fmt.Sprintf("%.4g ms", 1000*seconds)
	}
	return fmt.Sprintf("%.4g s", seconds)
}

// niceStep returns the smallest of 1, 2 and 5 times a power of ten that is at
// least x.
func niceStep(x float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(x)))
	for _, m := range []float64{1, 2, 5} {
		if m*p >= x*(1-1e-9) {
			return m * p
		}
	}
	return 10 * p
}

func (p *plot) curve(n *Node) {
	class := "n"
	switch {
	case n.Done == 0:
		class = "n f"
	case n.Slow:
		class = "n s"
	}
	total := float64(max(p.result.ImageBytes, 1))
	p.printf(`<polyline class="%s" points="%.1f,%.1f`, class, p.x(n.Arrived), p.y(0))
	for _, pt := range n.Progress {
		p.printf(" %.1f,%.1f", p.x(pt.At), p.y(float64(pt.Bytes)/total))
	}
	if n.Done > 0 {
		p.printf(" %.1f,%.1f", p.x(n.Done), p.y(1))
	}
	p.printf(`"><title>%s</title></polyline>`+"\n", escape(n.Name))
}

func (p *plot) bound() {
	b := p.result.Bound
	if !(b > 0) || math.IsInf(b, 0) || p.result.late() {
		return
	}
	p.printf(`<polyline class="b" points="%.1f,%.1f %.1f,%.1f %.1f,%.1f"/>`+"\n", p.x(0), p.y(0), p.x(b), p.y(1), p.x(b), p.y(0))
	p.printf(`<text x="%.1f" y="%.1f" text-anchor="end">bound %s</text>`+"\n", p.x(b)-4, p.y(0)-6, formatSeconds(b))
}

func (p *plot) legend() {
	x := plotLeft
	entry := func(class, text string) {
		p.printf(`<line class="%s" style="stroke-opacity:1" x1="%.1f" y1="42" x2="%.1f" y2="42"/><text x="%.1f" y="46">%s</text>`+"\n", class, x, x+20, x+25, escape(text))
		x += 40 + 6.5*float64(len(text))
	}
	name := "a node"
	if len(p.curves) < len(p.result.Nodes) {
		name = fmt.Sprintf("a node (%d of %d)", len(p.curves), len(p.result.Nodes))
	}
	entry("n", name)
	if p.result.Params.SlowNodes > 0 {
		entry("n s", "a slow one")
	}
	if p.result.Failed() > 0 {
		entry("n f", "one that failed")
	}
	if p.result.Bound > 0 && !p.result.late() {
		entry("b", "as fast as the links allow")
	}
}

// layers draws the rows below the curves. With more layers than rows, each row
// is the last of some layers in a row.
func (p *plot) layers() {
	if p.strips == 0 {
		return
	}
	top := plotBottom + 40
	p.printf(`<text x="%.1f" y="%.1f">each layer, when the nodes had it</text>`+"\n", plotLeft, top)
	total := 0
	for i := range p.result.Nodes {
		total = max(total, len(p.result.Nodes[i].Layers))
	}
	for row := range p.strips {
		layer := (row+1)*total/p.strips - 1
		y := top + 16 + float64(row)*stripRow
		p.printf(`<line class="g" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/><text x="%.1f" y="%.1f" text-anchor="end" font-size="10">%d</text>`+"\n",
			plotLeft, y, plotRight, y, plotLeft-6, y+3, layer+1)
		p.printf(`<path class="l" d="`)
		for _, n := range p.curves {
			if layer < len(n.Layers) && n.Layers[layer] > 0 {
				p.printf("M%.1f %.1fv%.0f", p.x(n.Layers[layer]), y-4, 8.0)
			}
		}
		p.printf(`"/>` + "\n")
	}
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

func escape(s string) string { return escaper.Replace(s) }
