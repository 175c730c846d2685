package netns

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestOptionsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o    Options
		want string // "": none
	}{
		"none":             {Options{}, ""},
		"all":              {Options{Zones: 4, CrossZoneRate: 1e6, Delay: time.Second}, ""},
		"negative zones":   {Options{Zones: -1}, "-1 zones"},
		"a million zones":  {Options{Zones: 1e6}, "1 to 512"},
		"negative rate":    {Options{CrossZoneRate: -1}, "at least 1000"},
		"no number":        {Options{CrossZoneRate: math.NaN()}, "at least 1000"},
		"infinite":         {Options{CrossZoneRate: math.Inf(1)}, "0 for a link without a limit"},
		"a byte a second":  {Options{CrossZoneRate: 1}, "at least 1000"},
		"negative delay":   {Options{Delay: -1}, "0 to 10s"},
		"delay of an hour": {Options{Delay: time.Hour}, "0 to 10s"},
		"two at once":      {Options{Zones: -1, Delay: -1}, "delay"},
	} {
		check(t, name, c.o.validate(), c.want)
	}
}

func TestHostsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		host string
		zone int
		link Link
		want string
	}{
		"plain":        {"node-1", 1, Link{1e6, 1e6}, ""},
		"no name":      {"", 0, Link{}, "host name"},
		"a path":       {"../x", 0, Link{}, "host name"},
		"the hub":      {"+hub", 0, Link{}, "host name"},
		"long":         {strings.Repeat("x", 64), 0, Link{}, "up to 63"},
		"no such zone": {"x", 2, Link{}, "zones are 0 to 1"},
		"negative":     {"x", -1, Link{}, "zones are 0 to 1"},
		"slow upload":  {"x", 0, Link{Up: 1}, "upload rate"},
		"slow down":    {"x", 0, Link{Down: -1}, "download rate"},
	} {
		check(t, name, Options{Zones: 2}.checkHost(c.host, c.zone, c.link), c.want)
	}
}

// check compares an error with what it should say; "" is no error.
func check(t *testing.T, name string, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: %v, want %q in it", name, err, want)
	}
}
