package origin

import (
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What is remembered is bounded and ends in time, the newest first.
func TestGrantsAreBounded(t *testing.T) {
	t.Parallel()
	var g grants
	g.init()
	now := time.Unix(1e9, 0)
	key := grantKey{"a.test", "app"}
	names := func(now time.Time) string {
		var all []string
		for _, x := range g.live(key.upstream, key.repository, now) {
			all = append(all, x.authorization)
		}
		return strings.Join(all, " ")
	}
	for i := range maxGranted + 2 {
		g.add(key, fmt.Sprint(i), now.Add(time.Duration(i)*time.Second), now)
	}
	if got := names(now); got != "9 8 7 6 5 4 3 2" {
		t.Errorf("at first: %q", got)
	}
	g.add(key, "5", now.Add(time.Minute), now)
	if got := names(now.Add(7 * time.Second)); got != "5 9 8" {
		t.Errorf("after 5 came again: %q", got)
	}
	if got := names(now.Add(time.Minute)); got != "" || len(g.of) != 0 || g.order.Len() != 0 || g.bytes != 0 {
		t.Errorf("when all are over: %q, %d repositories, %d in order, %d bytes", got, len(g.of), g.order.Len(), g.bytes)
	}

	for i := range maxGrants + 10 {
		g.add(grantKey{"a.test", fmt.Sprint(i)}, "x", now.Add(time.Hour), now)
	}
	if n := g.order.Len(); n != maxGrants || len(g.of) != maxGrants {
		t.Errorf("%d grants of %d repositories, want %d", n, len(g.of), maxGrants)
	}
	if len(g.live("a.test", "9", now)) != 0 || len(g.live("a.test", "10", now)) != 1 {
		t.Error("it was not the oldest that went")
	}
	big := strings.Repeat("x", maxAuthorization)
	for i := range 2 * maxGrantBytes / maxAuthorization {
		g.add(grantKey{"b.test", fmt.Sprint(i)}, big, now.Add(time.Hour), now)
	}
	if g.bytes > maxGrantBytes {
		t.Errorf("%d bytes, more than %d", g.bytes, maxGrantBytes)
	}
	// Those that nobody asks for end as well.
	g.add(key, "y", now.Add(3*time.Hour), now.Add(2*time.Hour))
	if n := g.order.Len(); n != 1 {
		t.Errorf("%d grants after all but one are over", n)
	}
}

// relayed returns what a caller of the upstream at base is told.
func relayed(base string, basic bool, realms []string, values ...string) *ChallengeError {
	u, err := url.Parse(base)
	if err != nil {
		panic(err)
	}
	e := &endpoint{up: &upstream{name: u.Host, relayBasic: basic}, base: u}
	e.auth = newAuthenticator(e, Upstream{Auth: AuthPassthrough, Realms: realms})
	return e.challengeError(values)
}

func TestRelayedChallenges(t *testing.T) {
	t.Parallel()
	const hub = "https://registry-1.docker.io/v2"
	for name, tc := range map[string]struct {
		base   string
		basic  bool
		realms []string
		values []string
		want   []string
	}{
		"Docker Hub": {hub, false, nil,
			[]string{`bearer REALM = "https://auth.docker.io/token" , service="registry.docker.io",scope="repository:library/alpine:pull",error="insufficient_scope"`},
			[]string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull",error="insufficient_scope"`}},
		"what is not known is left out": {hub, false, nil,
			[]string{`Bearer realm="https://auth.docker.io/token",evil="x",scope="a"`},
			[]string{`Bearer realm="https://auth.docker.io/token",scope="a"`}},
		"quotes":        {hub, false, nil, []string{`Bearer realm="https://auth.docker.io/t",service="a \"b\" \\"`}, []string{`Bearer realm="https://auth.docker.io/t",service="a \"b\" \\"`}},
		"foreign realm": {hub, false, nil, []string{`Bearer realm="https://elsewhere.test/token"`}, nil},
		"listed realm":  {hub, false, []string{"elsewhere.test"}, []string{`Bearer realm="https://elsewhere.test/token"`}, []string{`Bearer realm="https://elsewhere.test/token"`}},
		"plain realm":   {hub, false, nil, []string{`Bearer realm="http://auth.docker.io/token"`}, nil},
		"user in realm": {hub, false, nil, []string{`Bearer realm="https://a:b@auth.docker.io/token"`}, nil},
		"fragment":      {hub, false, nil, []string{`Bearer realm="https://auth.docker.io/token#x"`}, []string{`Bearer realm="https://auth.docker.io/token"`}},
		"no realm":      {hub, false, nil, []string{`Bearer service="x"`}, nil},
		"control":       {hub, false, nil, []string{"Bearer realm=\"https://auth.docker.io/token\",scope=\"a\r\nSet-Cookie: x\""}, nil},
		"not ASCII":     {hub, false, nil, []string{`Bearer realm="https://auth.docker.io/token",scope="ä"`}, nil},
		"too long":      {hub, false, nil, []string{`Bearer realm="https://auth.docker.io/token",scope="` + strings.Repeat("a", maxChallenge) + `"`}, nil},
		"Basic":         {hub, false, nil, []string{`Basic realm="x"`}, nil},
		"Basic, meant":  {hub, true, nil, []string{`Basic realm="x",charset="UTF-8"`}, []string{`Basic realm="x"`}},
		"both": {hub, true, nil, []string{`Basic realm="x"`, `Bearer realm="https://auth.docker.io/token"`},
			[]string{`Basic realm="x"`, `Bearer realm="https://auth.docker.io/token"`}},
		"the first of each": {hub, false, nil, []string{`Bearer realm="https://elsewhere.test/", Bearer realm="https://auth.docker.io/"`}, nil},
		"others":            {hub, true, nil, []string{`Negotiate abc, Digest realm="x", nonce="y"`}, nil},
		"own plain host":    {"http://10.0.0.1:5000/v2", false, nil, []string{`Bearer realm="http://10.0.0.1:5001/token"`}, []string{`Bearer realm="http://10.0.0.1:5001/token"`}},
		"nothing":           {hub, true, nil, nil, nil},
	} {
		c := relayed(tc.base, tc.basic, tc.realms, tc.values...)
		if !reflect.DeepEqual(c.Challenges, tc.want) {
			t.Errorf("%s: %q, want %q", name, c.Challenges, tc.want)
		}
	}
}

// Whatever a registry offers: what is relayed is a valid header that names an
// allowed realm, however it is read.
func FuzzRelayedChallenges(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull"`,
		`Bearer realm="https://auth.docker.io\@evil.test/"`, `Bearer realm="https://evil.test/", Basic realm="a\"b"`,
		`Bearer realm=https://auth.docker.io/`, "Bearer realm=\"https://auth.docker.io/%0d%0a\"", `Bearer realm="https://auth.docker.io/?a=\",realm=\"https://evil.test"`,
	} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, basic bool) {
		for _, text := range relayed("https://registry-1.docker.io/v2", basic, nil, s).Challenges {
			if len(text) > maxChallenge || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("%q is no header", text)
			}
			again := parseChallenges(text)
			if len(again) != 1 {
				t.Fatalf("%q is %d challenges", text, len(again))
			}
			if again[0].scheme == "basic" && basic {
				continue
			}
			realm, err := url.Parse(again[0].params["realm"])
			if err != nil || again[0].scheme != "bearer" || realm.Scheme != "https" || !sameDomain(realm.Hostname(), "docker.io") || realm.User != nil {
				t.Fatalf("%q names the realm %q", text, realm)
			}
		}
	})
}
