package signature

import (
	"strconv"
	"strings"
)

// A severity is how grave a vulnerability is.
type severity int

// Severities, from the least to the most grave. none is no vulnerability's: it
// is below all of them.
const (
	none severity = iota
	unknown
	negligible
	low
	medium
	high
	critical
)

var severityNames = []string{"none", "unknown", "negligible", "low", "medium", "high", "critical"}

func (s severity) String() string { return severityNames[s] }

// parseSeverity reads what scanners say: a word in any case, or a CVSS score
// from 0 to 10 (CVSS 3.1, section 5). ok is false for anything else.
func parseSeverity(s string) (sev severity, ok bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	switch s {
	case "unknown", "unspecified", "undefined":
		return unknown, true
	case "negligible", "none", "info", "informational":
		return negligible, true // the scanner's "none" is a finding all the same
	case "low", "minor", "note":
		return low, true
	case "medium", "moderate", "warning":
		return medium, true
	case "high", "important", "error":
		return high, true
	case "critical":
		return critical, true
	}
	score, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || !(score >= 0 && score <= 10): // not a number is neither
		return critical, false
	case score == 0:
		return negligible, true
	case score < 4:
		return low, true
	case score < 7:
		return medium, true
	case score < 9:
		return high, true
	}
	return critical, true
}

// severityOf is the gravest of what a scanner says of one vulnerability in
// several ways. A word that is not understood, and none at all, count as
// critical: a gate that can't tell must not open. "Unknown" is understood: it is
// the scanner that does not know.
func severityOf(words ...string) severity {
	gravest := none
	for _, w := range words {
		s, ok := parseSeverity(w)
		if !ok {
			return critical
		}
		gravest = max(gravest, s)
	}
	if gravest == none {
		return critical
	}
	return gravest
}
