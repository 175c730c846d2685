package signature

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/proto"
)

// clockSkew is how far in the future a scan may have finished.
const clockSkew = 5 * time.Minute

// Rejected is the error of an image that a Gate does not let pass.
type Rejected struct {
	Gate    string // its name
	Message string // for people: what is wrong and what to do about it
}

func (r *Rejected) Error() string { return fmt.Sprintf("vulnerability gate %q: %s", r.Gate, r.Message) }

// A gate is a Gate that is ready for use.
type gate struct {
	Gate
	key    *key
	max    severity
	ignore map[string]bool
	check  string // the verdict that an image has passed: At is when the scan finished
}

func newGate(g Gate, k *key) *gate {
	made := &gate{Gate: g, key: k, max: medium, ignore: map[string]bool{}}
	switch g.MaxSeverity {
	case "":
	case "none":
		made.max = none
	default:
		made.max, _ = parseSeverity(g.MaxSeverity)
	}
	if len(g.Types) == 0 {
		made.Types = scanTypes
	}
	for _, id := range g.Ignore {
		made.ignore[strings.ToUpper(id)] = true
	}
	g.Name, g.Repositories, g.MaxAge, g.Missing = "", nil, 0, ""
	made.check = "scan/" + fingerprint(g, []byte(k.check))
	return made
}

type scanKey struct {
	subject
	gate *gate
}

// A scan is what a gate needs to know of the newest scan result of an image.
type scan struct {
	// Found is whether there is one that the key has signed.
	Found bool
	// Problem is why it cannot be read; "" if it can.
	Problem string
	// Finished is when the scan ended; zero if it does not say.
	Finished time.Time
	// Grave are the worst of the findings that the gate does not let pass, Count
	// how many these are.
	Grave []finding
	Count int
}

// maxGrave bounds how many vulnerabilities a message names.
const maxGrave = 5

// Scan returns nil if all gates of the repository let a manifest pass, and
// *Rejected if one does not. Any other error means that this is not known: the
// registry failed, and wraps one of package origin's, or ctx ended. An image
// that has passed goes on to pass while the registry fails, until the scan is
// too old.
//
// The newest result of those that the gate's key has signed counts.
func (v *Verifier) Scan(ctx context.Context, upstream, repository string, d proto.Digest) error {
	s := subject{upstream, repository, d}
	for _, g := range v.gates {
		if !matchesAny(g.Repositories, upstream, repository) {
			continue
		}
		if err := v.scan(ctx, s, g); err != nil {
			return err
		}
	}
	return nil
}

func (v *Verifier) scan(ctx context.Context, s subject, g *gate) error {
	found, err := v.scanned.do(ctx, scanKey{s, g}, func() (scan, bool) { return scan{}, false },
		func(ctx context.Context) (scan, time.Duration, error) {
			found, err := v.lookupScan(ctx, s, g)
			if err != nil || g.reject(found, time.Now()) != nil {
				return found, unsignedFor, err
			}
			return found, lookedFor, nil
		})
	if err != nil {
		verdict, ok, _ := v.index.Verdict(g.check, s.digest)
		passed := scan{Found: true, Finished: verdict.At}
		if ok && ctx.Err() == nil && g.reject(passed, time.Now()) == nil {
			v.log.Debug("the registry cannot be asked for a newer scan result", "digest", s.digest, "upstream", s.upstream,
				"repository", s.repository, "gate", g.Name, "error", err)
			return nil
		}
		return fmt.Errorf("scan result of %s: %w", s, err)
	}
	if r := g.reject(found, time.Now()); r != nil {
		return r
	}
	return nil
}

// lookupScan asks the registry for scan results.
func (v *Verifier) lookupScan(ctx context.Context, s subject, g *gate) (scan, error) {
	select { // results may be large
	case v.scans <- struct{}{}:
		defer func() { <-v.scans }()
	case <-ctx.Done():
		return scan{}, ctx.Err()
	}
	var newest scan
	find := &search{
		origin: v.origin, subject: s, suffix: ".att", maxLayer: maxReport, skipped: v.skipped(s), wants: g.wants,
		visit: func(it item) bool {
			found, err := g.read(it, s.digest)
			if err != nil {
				v.log.Debug("scan result is not accepted", "digest", s.digest, "upstream", s.upstream,
					"repository", s.repository, "gate", g.Name, "kind", it.kind, "error", err)
				return true
			}
			if found.newerThan(newest) {
				newest = found
			}
			return true
		},
	}
	err := find.run(ctx)
	rejected := g.reject(newest, time.Now())
	v.metrics.scan(err, newest.Found, rejected == nil)
	if err == nil && newest.Found && rejected == nil {
		v.remember(g.check, s, cache.Verdict{At: newest.Finished})
	}
	return newest, err
}

func (g *gate) wants(k kind, predicate string) bool {
	return (k == kindBundle || k == kindEnvelope) && (predicate == "" || slices.Contains(g.Types, predicate))
}

// errNoScan is of statements about something else, signed or not.
var errNoScan = errors.New("it is no scan result")

// read returns what an item says if it is a scan result that the gate's key has
// signed, and else an error.
func (g *gate) read(it item, d proto.Digest) (s scan, err error) {
	defer recovered(&err)
	st, err := g.key.sigstore.attested(it, d)
	if err != nil {
		return scan{}, err
	}
	if !slices.Contains(g.Types, st.PredicateType) {
		return scan{}, fmt.Errorf("statement of type %.100q: %w", st.PredicateType, errNoScan)
	}
	r, err := parseReport(st.PredicateType, st.Predicate)
	s = scan{Found: true, Finished: r.Finished}
	if err != nil {
		s.Problem = err.Error()
		return s, nil
	}
	s.Grave, s.Count = g.grave(r.Findings)
	return s, nil
}

// grave returns the findings that the gate does not let pass, each vulnerability
// once, the worst first, at most maxGrave of them; and how many there are.
func (g *gate) grave(findings []finding) ([]finding, int) {
	worst := map[string]severity{}
	for _, f := range findings {
		if f.Severity > g.max && !g.ignore[strings.ToUpper(f.ID)] {
			worst[f.ID] = max(worst[f.ID], f.Severity)
		}
	}
	all := make([]finding, 0, len(worst))
	for id, sev := range worst {
		all = append(all, finding{id, sev})
	}
	slices.SortFunc(all, func(a, b finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.ID, b.ID))
	})
	return slices.Clone(all[:min(len(all), maxGrave)]), len(all)
}

// newerThan orders scans by when they finished. One that cannot be read and has
// no time may be newer than any other.
func (s scan) newerThan(t scan) bool {
	switch {
	case !t.Found:
		return true
	case s.Problem != "" && s.Finished.IsZero():
		return true
	case t.Problem != "" && t.Finished.IsZero():
		return false
	case s.Finished.Equal(t.Finished):
		return s.Problem != "" || s.Count > t.Count
	}
	return s.Finished.After(t.Finished)
}

// reject returns why the gate does not let an image pass, or nil.
func (g *gate) reject(s scan, now time.Time) *Rejected {
	refuse := func(format string, args ...any) *Rejected {
		return &Rejected{Gate: g.Name, Message: fmt.Sprintf(format, args...)}
	}
	age := now.Sub(s.Finished)
	switch {
	case !s.Found && g.Missing == "allow":
		return nil
	case !s.Found:
		return refuse("no scan result signed by %q is attached to the image: scan it and attest the result with this key", g.key.name)
	case s.Problem != "":
		return refuse("the newest scan result cannot be read: %s", s.Problem)
	case !s.Finished.IsZero() && age < -clockSkew:
		return refuse("the newest scan is said to have finished at %s, which is in the future: check the scanner's clock and this one's", s.Finished.UTC().Format(time.RFC3339))
	case g.MaxAge > 0 && s.Finished.IsZero():
		return refuse("the newest scan result does not say when the scan finished")
	case g.MaxAge > 0 && age > g.MaxAge:
		return refuse("the newest scan is of %s, older than %s: scan the image again", s.Finished.UTC().Format(time.RFC3339), g.MaxAge)
	case s.Count > 0:
		return refuse("%s", s.describe(g.max))
	}
	return nil
}

// describe says what was found.
func (s scan) describe(limit severity) string {
	var list []string
	for _, f := range s.Grave {
		list = append(list, fmt.Sprintf("%.60q (%s)", f.ID, f.Severity))
	}
	if more := s.Count - len(s.Grave); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	noun := "vulnerabilities"
	if s.Count == 1 {
		noun = "vulnerability"
	}
	above := " above " + limit.String()
	if limit == none {
		above = ""
	}
	return fmt.Sprintf("%d %s%s: %s", s.Count, noun, above, strings.Join(list, ", "))
}
