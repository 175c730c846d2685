package origin

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/proto"
)

func TestParseRepository(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"alpine":                  true,
		"library/alpine":          true,
		"a/b/c/d":                 true,
		"a.b_c__d-e--f":           true,
		"0":                       true,
		strings.Repeat("a", 255):  true,
		strings.Repeat("a", 256):  false,
		"":                        false,
		"/a":                      false,
		"a/":                      false,
		"a//b":                    false,
		"A":                       false,
		"a..b":                    false,
		"a___b":                   false,
		"a/.":                     false,
		"a/../b":                  false,
		"-a":                      false,
		"a-":                      false,
		"a b":                     false,
		"a%2fb":                   false,
		"a?b":                     false,
		"a\n":                     false,
		"ä":                       false,
		"registry.example:5000/a": false,
	} {
		got, err := ParseRepository(s)
		if (err == nil) != want || want && got != s {
			t.Errorf("ParseRepository(%q) = %q, %v", s, got, err)
		}
	}
}

func TestParseTag(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"latest":                 true,
		"V1.2-3_4":               true,
		"_":                      true,
		strings.Repeat("a", 128): true,
		strings.Repeat("a", 129): false,
		"":                       false,
		".a":                     false,
		"-a":                     false,
		"a/b":                    false,
		"a:b":                    false,
		"a\n":                    false,
		"..":                     false,
	} {
		got, err := ParseTag(s)
		if (err == nil) != want || want && got != s {
			t.Errorf("ParseTag(%q) = %q, %v", s, got, err)
		}
	}
}

func FuzzParseRepository(f *testing.F) {
	for _, s := range []string{"library/alpine", "a..b", "a/../b", "A", "", "a__b/c-d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := ParseRepository(s)
		if err != nil {
			return
		}
		// What is valid must survive a URL's path unchanged, and stay below it.
		e := &endpoint{base: &url.URL{Scheme: "https", Host: "a.test", Path: "/v2"}}
		u, err := url.Parse(e.url(name+"/tags/list", "").String())
		if err != nil || u.Path != "/v2/"+s+"/tags/list" || u.JoinPath().Path != u.Path {
			t.Errorf("%q became %v, %v", s, u, err)
		}
	})
}

func FuzzParseTag(f *testing.F) {
	for _, s := range []string{"latest", "..", "a/b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := ParseTag(s); err == nil && (url.PathEscape(s) != s || strings.Trim(s, ".") == "") {
			t.Errorf("%q is not safe in a path", s)
		}
	})
}

func FuzzPublicHost(f *testing.F) {
	for _, s := range []string{"quay.io", "quay.io:443", "127.0.0.1", "[::1]:1", "a..b", "a@b.c", "a.b:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !publicHost(s) {
			return
		}
		u, err := url.Parse("https://" + s)
		if err != nil || u.Host != s || u.User != nil || u.Path != "" || u.RawQuery != "" {
			t.Errorf("%q became %v, %v", s, u, err)
		}
		if _, err := netip.ParseAddr(u.Hostname()); err == nil {
			t.Errorf("%q is an address", s)
		}
	})
}

func TestPublicAddr(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"8.8.8.8":                true,
		"1.1.1.1":                true,
		"172.15.255.255":         true,
		"172.32.0.1":             true,
		"100.63.255.255":         true,
		"100.128.0.1":            true,
		"2606:4700::1111":        true,
		"::ffff:8.8.8.8":         true,
		"64:ff9b::8.8.8.8":       true,
		"0.0.0.0":                false,
		"10.1.2.3":               false,
		"100.64.0.1":             false,
		"127.0.0.1":              false,
		"127.255.0.1":            false,
		"169.254.169.254":        false,
		"172.16.0.1":             false,
		"172.31.255.255":         false,
		"192.0.0.8":              false,
		"192.0.2.1":              false,
		"192.168.1.1":            false,
		"198.18.0.1":             false,
		"198.51.100.1":           false,
		"203.0.113.1":            false,
		"224.0.0.1":              false,
		"255.255.255.255":        false,
		"::":                     false,
		"::1":                    false,
		"::127.0.0.1":            false,
		"::ffff:127.0.0.1":       false,
		"::ffff:169.254.169.254": false,
		"64:ff9b::10.0.0.1":      false,
		"64:ff9b:1::1":           false,
		"100::1":                 false,
		"2001::1":                false,
		"2001:db8::1":            false,
		"2002:7f00:1::":          false,
		"3fff::1":                false,
		"5f00::1":                false,
		"fc00::1":                false,
		"fd12:3456::1":           false,
		"fe80::1":                false,
		"fe80::1%eth0":           false,
		"fec0::1":                false,
		"ff02::1":                false,
	} {
		if got := publicAddr(netip.MustParseAddr(s)); got != want {
			t.Errorf("publicAddr(%s) = %v, want %v", s, got, want)
		}
	}
	if publicAddr(netip.Addr{}) {
		t.Error("no address at all is public")
	}
}

func TestParseBase(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"https://a.test":                     "https://a.test/v2",
		"https://A.test/":                    "https://a.test/v2",
		"http://10.0.0.1:5000":               "http://10.0.0.1:5000/v2",
		"https://a.test/v2/":                 "https://a.test/v2",
		"https://a.test/api/docker":          "https://a.test/api/docker/v2",
		"https://a.test/v2/dockerhub-proxy/": "https://a.test/v2/dockerhub-proxy",
		"https://[2001:db8::1]:5000":         "https://[2001:db8::1]:5000/v2",
	} {
		got, err := parseBase(s)
		if err != nil || got.String() != want {
			t.Errorf("parseBase(%q) = %v, %v; want %s", s, got, err, want)
		}
	}
	if got := defaultURL("docker.io"); got != "https://registry-1.docker.io" {
		t.Errorf("docker.io is at %s", got)
	}
}

func TestParseContentRange(t *testing.T) {
	t.Parallel()
	for s, want := range map[string][3]int64{
		"bytes 0-9/10":    {0, 9, 10},
		"bytes 5-5/*":     {5, 5, -1},
		"bytes 0-0/1":     {0, 0, 1},
		"":                {},
		"bytes */10":      {},
		"bytes 9-0/10":    {},
		"bytes 0-10/10":   {},
		"bytes -1-5/10":   {},
		"bytes 0-9/10, x": {},
		"bytes 0-9":       {},
		"items 0-9/10":    {},
		"bytes 0-99999999999999999999/999999999999999999999": {},
	} {
		first, last, total, err := parseContentRange(s)
		if got := [3]int64{first, last, total}; got != want || (err == nil) != (want != [3]int64{}) {
			t.Errorf("parseContentRange(%q) = %v, %v", s, got, err)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 5-5/*", "bytes 9-0/10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err == nil && (first < 0 || last < first || total >= 0 && last >= total) {
			t.Errorf("%q gave %d-%d/%d", s, first, last, total)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"120":                           2 * time.Minute,
		"-1":                            0,
		"1.5":                           0,
		"+5":                            0,
		"3600":                          time.Hour,
		"3601":                          time.Hour,
		"99999999999":                   time.Hour,
		"99999999999999999999999999999": time.Hour,
		"soon":                          0,
		"Sat, 03 Jan 2026 03:04:15 GMT": time.Hour,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := parseRetryAfter(s, now); got != want {
			t.Errorf("parseRetryAfter(%q) = %s, want %s", s, got, want)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Fri, 02 Jan 2026 03:04:15 GMT")
	f.Add("99999999999999999999")
	f.Fuzz(func(t *testing.T, s string) {
		if d := parseRetryAfter(s, time.Now()); d < 0 || d > maxRest {
			t.Errorf("%q gave %s", s, d)
		}
	})
}

func TestParseRateLimit(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{
		"76;w=21600":           76,
		"76":                   76,
		"0;w=21600":            0,
		" 100 , 100;w=60":      100,
		"100,1000;w=3600":      100,
		"":                     -1,
		";w=21600":             -1,
		"-5;w=21600":           -1,
		"+5":                   -1,
		"1.5":                  -1,
		"many":                 -1,
		"99999999999999999999": -1,
	} {
		got, ok := parseRateLimit(s)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("parseRateLimit(%q) = %d, want %d", s, got, want)
		}
	}
}

func FuzzParseRateLimit(f *testing.F) {
	f.Add("76;w=21600")
	f.Add("100, 100;w=60")
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := parseRateLimit(s)
		if ok && n < 0 {
			t.Errorf("%q gave %d, %v", s, n, ok)
		}
		if ok && !strings.Contains(s, strconv.FormatInt(n, 10)) {
			t.Errorf("%q gave %d", s, n)
		}
	})
}

// The tag is of the specification's form, whatever the digest's algorithm.
func TestReferrersTag(t *testing.T) {
	t.Parallel()
	d256, d512 := strings.Repeat("0f", 32), strings.Repeat("0f", 64)
	for digest, want := range map[string]string{
		"sha256:" + d256: "sha256-" + d256,
		"sha512:" + d512: "sha512-" + d512[:64],
	} {
		d, err := proto.ParseDigest(digest)
		if err != nil {
			t.Fatal(err)
		}
		got := referrersTag(d)
		if got != want {
			t.Errorf("referrersTag(%s) = %s, want %s", digest, got, want)
		}
		if _, err := ParseTag(got); err != nil {
			t.Error(err)
		}
	}
}

// The class of a total failure: what a caller does next depends on it.
func TestFailureClass(t *testing.T) {
	t.Parallel()
	type attempt struct {
		host  string
		class error
	}
	for _, tc := range []struct {
		attempts []attempt
		want     error
	}{
		{[]attempt{{"a", ErrNotFound}}, ErrNotFound},
		{[]attempt{{"a", ErrNotFound}, {"b", ErrNotFound}}, ErrNotFound},
		{[]attempt{{"a", ErrNotFound}, {"b", ErrUnavailable}}, ErrUnavailable},
		{[]attempt{{"a", ErrUnavailable}, {"b", ErrNotFound}}, ErrUnavailable},
		{[]attempt{{"a", ErrUnavailable}, {"b", ErrDenied}}, ErrDenied},
		{[]attempt{{"a", ErrDenied}, {"b", ErrNotFound}}, ErrDenied},
		{[]attempt{{"a", ErrProtocol}, {"b", ErrNotFound}}, ErrProtocol},
		{[]attempt{{"a", ErrTooLarge}, {"b", ErrNotFound}}, ErrTooLarge},
		// The last word of a host counts.
		{[]attempt{{"a", ErrUnavailable}, {"a", ErrNotFound}}, ErrNotFound},
	} {
		f := &failure{what: "it"}
		for _, a := range tc.attempts {
			f.add(a.host, &attemptError{class: a.class, text: a.class.Error()})
		}
		if got := f.Unwrap(); got != tc.want {
			t.Errorf("%v came to %v, want %v", tc.attempts, got, tc.want)
		}
	}
}

func TestBackoffIsBounded(t *testing.T) {
	t.Parallel()
	for _, base := range []time.Duration{1, time.Millisecond, 200 * time.Millisecond, time.Minute} {
		for n := 1; n < 100; n++ {
			most := max(base, maxBackoff)
			least, spread := backoff(base, n, maxBackoff, 0), backoff(base, n, maxBackoff, 1)
			if least < base*3/4 || spread > most*5/4+1 || spread < least {
				t.Fatalf("backoff(%s, %d) = %s to %s", base, n, least, spread)
			}
		}
	}
}
