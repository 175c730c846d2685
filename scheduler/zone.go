package scheduler

import "strings"

// distance returns how many levels of the longer of two zones lie below what
// they have in common: 0 for the same zone, 1 for two racks of one site, and
// so on. Zones are paths such as "eu/berlin/r12".
func distance(a, b string) int {
	if a == b {
		return 0
	}
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	common := 0
	for common < min(len(x), len(y)) && x[common] == y[common] {
		common++
	}
	return max(len(x), len(y)) - common
}
