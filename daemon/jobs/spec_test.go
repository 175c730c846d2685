package jobs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/platforms"

	"github.com/shoal-project/shoal/proto"
)

func TestParseImage(t *testing.T) {
	t.Parallel()
	d := proto.DigestOf(nil).String()
	for _, test := range []struct{ in, def, want, err string }{
		{"alpine", "docker.io", "docker.io/library/alpine:latest", ""},
		{"alpine:3.20", "docker.io", "docker.io/library/alpine:3.20", ""},
		{"alpine", "ghcr.io", "ghcr.io/alpine:latest", ""},
		{"team/app", "docker.io", "docker.io/team/app:latest", ""},
		{"docker.io/alpine", "ghcr.io", "docker.io/library/alpine:latest", ""},
		{"index.docker.io/alpine", "ghcr.io", "docker.io/library/alpine:latest", ""},
		{"GHCR.io/team/app:v1", "docker.io", "ghcr.io/team/app:v1", ""},
		{"localhost/app", "docker.io", "localhost/app:latest", ""},
		{"localhost:5000/a/b:c", "docker.io", "localhost:5000/a/b:c", ""},
		{"[::1]:5000/app", "docker.io", "[::1]:5000/app:latest", ""},
		{"alpine@" + d, "docker.io", "docker.io/library/alpine@" + d, ""},
		{"alpine:3@" + d, "docker.io", "docker.io/library/alpine:3@" + d, ""},
		{"", "docker.io", "", "is not valid"},
		{"Alpine", "docker.io", "", "is not valid"},
		{"alpine:", "docker.io", "", "tag"},
		{"alpine:a b", "docker.io", "", "tag"},
		{"alpine@sha256:abc", "docker.io", "", "hexadecimal"},
		{"https://ghcr.io/app", "docker.io", "", "a URL is not a reference"},
		{"reg_istry.io/app", "docker.io", "", "is not a registry"},
		{strings.Repeat("a", 1000), "docker.io", "", "characters"},
	} {
		ref, err := ParseImage(test.in, test.def)
		got := ""
		if err == nil {
			got = ref.Upstream + "/" + ref.Repository
			if ref.Tag != "" {
				got += ":" + ref.Tag
			}
			if !ref.Digest.IsZero() {
				got += "@" + ref.Digest.String()
			}
			if !ref.Manifest {
				t.Errorf("%q is no manifest", test.in)
			}
		}
		if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("ParseImage(%.100q, %s) = %q, %v; want %q, an error with %q", test.in, test.def, got, err, test.want, test.err)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	f.Add("alpine:3@" + proto.DigestOf(nil).String())
	f.Add("[::1]:5000/a/b")
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseImage(s, "docker.io")
		if err != nil {
			return
		}
		name := ref.Upstream + "/" + ref.Repository
		if ref.Tag != "" {
			name += ":" + ref.Tag
		}
		if !ref.Digest.IsZero() {
			name += "@" + ref.Digest.String()
		}
		if again, err := ParseImage(name, "other.test"); err != nil || again != ref {
			t.Errorf("%q is %q, and that %+v, %v", s, name, again, err)
		}
	})
}

func TestNodes(t *testing.T) {
	t.Parallel()
	daemon := func(name, zone string) proto.Member {
		return proto.Member{ID: "id-" + name, Name: name, Zone: zone, Roles: proto.RoleDaemon}
	}
	self := daemon("self", "eu/berlin/r1")
	members := []proto.Member{
		daemon("d", "us"), self, daemon("b", "eu/berlin"), daemon("c", "eu/berlin2"),
		{ID: "id-s", Name: "s", Zone: "eu/berlin", Roles: proto.RoleScheduler},
	}
	for _, test := range []struct{ nodes, want, err string }{
		{"", "self", ""},
		{"all", "b c d self", ""},
		{"zone:eu/berlin", "b self", ""},
		{"zone:/eu/", "b c self", ""},
		{"zone:eu/ber", "", `no daemon in zone "eu/ber" or below it; the zones are "eu/berlin", "eu/berlin/r1", "eu/berlin2", "us"`},
		{"100%", "b c d self", ""},
		{"zone:", "", "write all"},
		{"0%", "", "write all"},
		{"101%", "", "write all"},
		{"NaN%", "", "write all"},
		{"x%", "", "write all"},
		{"ALL", "", "write all"},
	} {
		c, err := parseNodes(test.nodes)
		var names []string
		if err == nil {
			var found []proto.Member
			found, err = c.among(members, self, "key")
			for _, m := range found {
				names = append(names, m.Name)
			}
		}
		if got := strings.Join(names, " "); got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("nodes %q = %q, %v; want %q, an error with %q", test.nodes, got, err, test.want, test.err)
		}
	}
	if _, err := (choice{share: 1}).among(nil, self, ""); err == nil {
		t.Error("all of nobody is no error")
	}
}

// A share is rounded up, is spread over the nodes by what is brought, and a
// larger one has all of a smaller one.
func TestShares(t *testing.T) {
	t.Parallel()
	var members []proto.Member
	for i := range 200 {
		members = append(members, proto.Member{ID: fmt.Sprint(i), Name: fmt.Sprintf("%03d", i), Roles: proto.RoleDaemon})
	}
	share := func(percent, key string) []proto.Member {
		c, err := parseNodes(percent)
		if err != nil {
			t.Fatal(err)
		}
		found, err := c.among(members, proto.Member{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for percent, want := range map[string]int{"0.1%": 1, "1%": 2, "25%": 50, "25.1%": 51, "100%": 200} {
		if got := share(percent, "a"); len(got) != want || !slices.IsSortedFunc(got, func(a, b proto.Member) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("%s are %d, want %d in order", percent, len(got), want)
		}
	}
	small, large, other := share("25%", "a"), share("50%", "a"), share("25%", "b")
	both := 0
	for _, m := range small {
		if !slices.Contains(large, m) {
			t.Errorf("%s is in a quarter and not in a half", m.Name)
		}
		if slices.Contains(other, m) {
			both++
		}
	}
	if both == len(small) || both == 0 {
		t.Errorf("%d of %d nodes are the same for another image", both, len(small))
	}
	slices.Reverse(members)
	if !slices.Equal(share("25%", "a"), small) {
		t.Error("the order of the members matters")
	}
}

func index(platforms ...string) ([]byte, []proto.Digest) {
	var entries []string
	var digests []proto.Digest
	for i, p := range platforms {
		d := proto.DigestOf([]byte{byte(i)})
		digests = append(digests, d)
		entry := `{"digest":"` + d.String() + `","size":1`
		if p != "" {
			entry += `,"platform":` + p
		}
		entries = append(entries, entry+"}")
	}
	return []byte(`{"manifests":[` + strings.Join(entries, ",") + `]}`), digests
}

func TestChoose(t *testing.T) {
	t.Parallel()
	const (
		amd64   = `{"os":"linux","architecture":"amd64"}`
		amd64v3 = `{"os":"linux","architecture":"amd64","variant":"v3"}`
		arm64   = `{"os":"linux","architecture":"arm64"}`
		arm64v8 = `{"os":"linux","architecture":"arm64","variant":"v8"}`
		armv6   = `{"os":"linux","architecture":"arm","variant":"v6"}`
		armv7   = `{"os":"linux","architecture":"arm","variant":"v7"}`
		none    = `{"os":"unknown","architecture":"unknown"}`
		windows = `{"os":"windows","architecture":"amd64","os.version":"10.0.17763.1"}`
	)
	for _, test := range []struct {
		want, has []string
		picks     []int
		err       string
	}{
		{[]string{"linux/amd64"}, []string{arm64, amd64, none}, []int{1}, ""},
		{[]string{"linux/amd64"}, []string{amd64v3, amd64}, []int{1}, ""},
		{[]string{"linux/amd64/v3"}, []string{amd64, amd64v3}, []int{1}, ""},
		{[]string{"linux/amd64/v3"}, []string{amd64}, []int{0}, ""},
		{[]string{"linux/arm64"}, []string{armv7, arm64v8}, []int{1}, ""},
		{[]string{"linux/arm64/v8"}, []string{arm64}, []int{0}, ""},
		{[]string{"linux/arm64"}, []string{armv6, armv7}, []int{1}, ""}, // it runs those too
		{[]string{"linux/arm/v7"}, []string{armv6}, []int{0}, ""},
		{[]string{"linux/arm/v6"}, []string{armv7}, nil, "it has no image for linux/arm/v6; it has linux/arm/v7"},
		{[]string{"linux/amd64", "linux/arm/v7"}, []string{armv7, amd64}, []int{1, 0}, ""},
		{[]string{"linux/amd64", "amd64"}, []string{amd64, amd64}, []int{0}, ""},
		{[]string{"windows/amd64"}, []string{amd64, windows}, []int{1}, ""},
		{[]string{"linux/amd64"}, []string{"", "", arm64}, []int{0, 1}, ""},
		{[]string{"linux/amd64"}, []string{none}, nil, "it has none"},
		{[]string{"linux/amd64"}, nil, nil, "it has none"},
		{nil, []string{amd64, none, ""}, []int{0, 1, 2}, ""},
	} {
		data, digests := index(test.has...)
		f, err := newFilter(test.want, test.want == nil, platforms.Platform{})
		if err != nil {
			t.Fatal(err)
		}
		var want []proto.Digest
		for _, i := range test.picks {
			want = append(want, digests[i])
		}
		got, err := f.choose(data)
		if !slices.Equal(got, want) || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%v of %v = %v, %v; want %v, an error with %q", test.want, test.has, got, err, want, test.err)
		}
	}
}

func FuzzChoose(f *testing.F) {
	data, _ := index(`{"os":"linux","architecture":"arm64"}`, "", `{"os":"windows"}`)
	f.Add(data, "linux/arm64")
	f.Fuzz(func(t *testing.T, data []byte, platform string) {
		want, err := newFilter([]string{platform}, false, platforms.Platform{})
		if err != nil {
			return
		}
		for _, d := range []filter{want, {all: true}} {
			if chosen, err := d.choose(data); err == nil && !isIndex(data) && len(chosen) > 0 {
				t.Errorf("%d chosen of something else than an index", len(chosen))
			}
		}
	})
}
