package daemon_test

import (
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/daemon/policy/signature"
	"github.com/shoal-project/shoal/daemon/rate"
	"github.com/shoal-project/shoal/proto"
)

// resolved returns the default configuration of role as a process gets it.
func resolved(t *testing.T, c daemon.Config) daemon.Config {
	t.Helper()
	c.Data = "/var/lib/shoal"
	c, err := c.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	if err := resolved(t, daemon.Default()).Validate(); err != nil {
		t.Errorf("daemon: %v", err)
	}
	s := daemon.DefaultScheduler()
	s.Gossip.SecretFile = "/etc/shoal/secret"
	if err := resolved(t, s).Validate(); err != nil {
		t.Errorf("scheduler: %v", err)
	}
}

func TestDefaultIsOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	c := daemon.Default()
	for _, addr := range []string{c.Mirror.Listen, c.Peer.Listen, c.Gossip.Listen, c.Admin.Listen} {
		host, _, err := net.SplitHostPort(addr)
		if err != nil || !net.ParseIP(host).IsLoopback() {
			t.Errorf("%q is not on loopback", addr)
		}
	}
	if len(c.Gossip.Join) != 0 || c.Upstreams["*"].URL != "" {
		t.Error("the default joins somebody or is an open proxy")
	}
	if _, open := c.Upstreams["*"]; open {
		t.Error(`the default has "*"`)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	scheduler := func(c *daemon.Config) { c.Role, c.Gossip.Listen = proto.RoleScheduler, ":7052" }
	up := func(name string, u daemon.Upstream) func(*daemon.Config) {
		return func(c *daemon.Config) { c.Upstreams[name] = u }
	}
	node := daemon.Upstream{Auth: "node", Username: "u", PasswordFile: "/p", Allow: []string{"team/*"}}
	with := func(change func(*daemon.Upstream)) func(*daemon.Config) {
		u := node
		change(&u)
		return up("r.example.com", u)
	}
	for _, tt := range []struct {
		name   string
		change func(*daemon.Config)
		want   []string // one for each mistake, contained in it; none if it is valid
	}{
		{"role", func(c *daemon.Config) { c.Role = 0 }, []string{"role: is neither"}},
		{"name with space", func(c *daemon.Config) { c.Name = "a b" }, []string{"name: "}},
		{"zone", func(c *daemon.Config) { c.Zone = "eu//b" }, []string{"zone: "}},
		{"zone too long", func(c *daemon.Config) { c.Zone = strings.Repeat("a", 200) }, []string{"zone: "}},
		{"data", func(c *daemon.Config) { c.Data = "" }, []string{"data: there is no home directory"}},
		{"advertise", func(c *daemon.Config) { c.Advertise = "10.0.0.7:7051" }, []string{"without a port"}},
		{"advertise any", func(c *daemon.Config) { c.Advertise = "0.0.0.0" }, []string{"advertise: "}},
		{"drain", func(c *daemon.Config) { c.Drain = -time.Second }, []string{"drain: -1s"}},
		{"drain 0", func(c *daemon.Config) { c.Drain = 0 }, nil},
		{"words", func(c *daemon.Config) { c.Peer.Security, c.Log.Level, c.Log.Format = "ssl", "all", "" },
			[]string{`peer.security: "ssl" is not a value of this key; write tls or none`, "log.level: ", "log.format: "}},
		{"congestion", func(c *daemon.Config) { c.Peer.Congestion = "BBR v3" }, []string{`peer.congestion: "BBR v3" is not the name`}},
		{"congestion by name", func(c *daemon.Config) { c.Peer.Congestion = "bbr" }, nil},

		{"no port", func(c *daemon.Config) { c.Mirror.Listen = "127.0.0.1" }, []string{`mirror.listen: "127.0.0.1" is not host:port; write`}},
		{"port name", func(c *daemon.Config) { c.Admin.Listen = ":http" }, []string{"admin.listen: "}},
		{"port too large", func(c *daemon.Config) { c.Admin.Listen = ":70000" }, []string{"admin.listen: "}},
		{"odd host", func(c *daemon.Config) { c.Admin.Listen = "a b:1" }, []string{"admin.listen: "}},
		{"same port", func(c *daemon.Config) { c.Admin.Listen = c.Mirror.Listen }, []string{"admin.listen: 127.0.0.1:7050 is the same as that of mirror.listen"}},
		{"same port, all addresses", func(c *daemon.Config) { c.Admin.Listen = ":7050" },
			[]string{"admin.listen: :7050 is the same as", "admin.listen: :7050 can be reached from other machines"}},
		{"same port, another address", func(c *daemon.Config) { c.Admin.Listen = "127.0.0.2:7050" }, nil},
		{"port 0", func(c *daemon.Config) { c.Admin.Listen, c.Mirror.Listen = "127.0.0.1:0", "127.0.0.1:0" }, nil},
		{"no doors", func(c *daemon.Config) { c.Admin.Listen, c.Mirror.Listen = "", "" }, nil},
		{"IPv6", func(c *daemon.Config) { c.Mirror.Listen = "[::1]:7050" }, nil},
		{"no peer listener", func(c *daemon.Config) { c.Peer.Listen = "" }, []string{"peer.listen: "}},

		{"join without secret", func(c *daemon.Config) { c.Gossip.Join = []string{"127.0.0.1:7152"} }, []string{"gossip.secretFile: gossip.join"}},
		{"open gossip without secret", func(c *daemon.Config) { c.Gossip.Listen = ":7052" }, []string{"gossip.secretFile: gossip.listen (:7052) can be reached"}},
		{"open gossip, IPv6", func(c *daemon.Config) { c.Gossip.Listen = "[::]:7052" }, []string{"gossip.secretFile: "}},
		{"gossip at a name", func(c *daemon.Config) { c.Gossip.Listen = "node:7052" }, []string{"gossip.secretFile: "}},
		{"gossip at localhost", func(c *daemon.Config) { c.Gossip.Listen = "localhost:7052" }, nil},
		{"scheduler without secret", scheduler, []string{"gossip.secretFile: "}},
		{"open gossip with secret", func(c *daemon.Config) { c.Gossip.Listen, c.Gossip.SecretFile = ":7052", "/s" }, nil},
		{"join without port", func(c *daemon.Config) { c.Gossip.Join, c.Gossip.SecretFile = []string{"localhost", ":7052"}, "/s" },
			[]string{`gossip.join: "localhost" is not an address`, `gossip.join: ":7052"`}},
		{"joins others from loopback", func(c *daemon.Config) { c.Gossip.Join, c.Gossip.SecretFile = []string{"10.0.0.2:7052"}, "/s" },
			[]string{"peer.listen: 127.0.0.1:7051 is on loopback", "gossip.listen: 127.0.0.1:7052 is on loopback"}},

		{"rates", func(c *daemon.Config) {
			c.Limits = daemon.LimitsConfig{UploadRate: 1e6 / 8, DownloadRate: 1e9, Schedule: []string{"22:00-06:00 unlimited", "Sat 08:00-19:00 origin 1mbit"}}
		}, nil},
		{"rates too low", func(c *daemon.Config) {
			c.Limits = daemon.LimitsConfig{UploadRate: 1, DownloadRate: -1, OriginRate: rate.Rate(math.NaN())}
		}, []string{"limits.uploadRate: \"8bit\" is so slow that it can't be told from a dead link; write 1mbit or more, or unlimited", "limits.downloadRate: ", "limits.originRate: "}},
		{"windows", func(c *daemon.Config) { c.Limits.Schedule = []string{"20mbit", "08:00-19:00 20", "08:00-19:00 8kbit"} },
			[]string{`limits.schedule: "20mbit": `, `"20" is not a rate`, `"08:00-19:00 8kbit" is so slow`}},
		{"too many windows", func(c *daemon.Config) { c.Limits.Schedule = slices.Repeat([]string{"08:00-19:00 20mbit"}, 101) },
			[]string{"limits.schedule: has 101 windows"}},

		{"tags", func(c *daemon.Config) {
			c.Tags = daemon.TagsConfig{TTL: -1, NotFound: -1, Revalidate: -1, MaxStale: -1}
		},
			[]string{"tags.ttl: ", "tags.notFound: ", "tags.revalidate: ", "tags.maxStale: "}},
		{"tags not remembered", func(c *daemon.Config) { c.Tags = daemon.TagsConfig{} }, nil},
		{"tag rules", with(func(u *daemon.Upstream) {
			u.TagTTL, u.Tags = time.Hour, map[string]string{"v*": "immutable", "latest": "10s"}
		}), nil},
		{"tag rules that do not parse", with(func(u *daemon.Upstream) {
			u.TagTTL, u.Tags = -1, map[string]string{"[": "immutable", "a": "for ever", "app:v1": "1m"}
		}), []string{".tagTTL: ", `.tags: tag pattern "["`, `.tags: tags that match "a": "for ever" is neither`, ".tags: tag pattern \"app:v1\""}},
		{"quota", func(c *daemon.Config) {
			c.Cache.Quota, c.Cache.High, c.Cache.Low = cache.Amount{}, cache.Bytes(5), cache.Amount{}
		},
			[]string{"cache.quota: ", "cache.high: \"5\" is not a share", "cache.low: "}},
		{"watermarks", func(c *daemon.Config) { c.Cache.High, c.Cache.Low = cache.Percent(50), cache.Percent(60) }, []string{"cache.low: 60% is more than cache.high, 50%"}},
		{"keep", func(c *daemon.Config) { c.Cache.Keep = -1 }, []string{"cache.keep: "}},
		{"cron", func(c *daemon.Config) { c.Cache.GC, c.Cache.Scrub = "hourly", "0 3 * * 9" },
			[]string{`cache.gc: "hourly" is not a cron expression: expected exactly 5 fields`, "cache.scrub: "}},
		{"no cron", func(c *daemon.Config) { c.Cache.GC, c.Cache.Scrub = "", "" }, nil},
		{"scrub rate", func(c *daemon.Config) { c.Cache.ScrubRate = 1 }, []string{"cache.scrubRate: 8bit is so slow"}},
		{"pins", func(c *daemon.Config) { c.Cache.Pins = []string{"docker.io/library/*:3*", "sha256:short", ""} }, []string{"cache.pins: ", "cache.pins: "}},
		{"adopt", func(c *daemon.Config) { c.Cache.Adopt = []string{"content"} }, []string{`cache.adopt: "content" is not an absolute path`}},
		{"prefetch", func(c *daemon.Config) {
			c.Prefetch = []daemon.PrefetchConfig{
				{Image: "alpine:3", At: "0 5 * * *", Platforms: []string{"linux/arm64"}, Nodes: "25%"},
				{Image: "UPPER", At: "0 5 * * *"}, {Image: "alpine"}, {Image: "alpine", At: "at five"},
				{Image: "alpine", At: "@daily", Nodes: "some"}, {Image: "alpine", At: "@daily", Platforms: []string{"linux/"}},
			}
		}, []string{`prefetch[1]: image "UPPER"`, "prefetch[2].at: is missing", "prefetch[3].at: ", "prefetch[4]: nodes", "prefetch[5]: "}},
		{"webhook", func(c *daemon.Config) {
			c.Webhook.Rules = []daemon.WebhookRule{
				{Repository: "team/**", Tag: "v*", Upstream: "docker.io", Nodes: "zone:eu"},
				{Repository: "["}, {Tag: "["}, {Upstream: "elsewhere.example"}, {Nodes: "0%"},
			}
		}, []string{"webhook.rules[1].repository: ", "webhook.rules[2].tag: ", "webhook.rules[3].upstream: ", "webhook.rules[4]: "}},

		{"no upstreams", func(c *daemon.Config) { c.Upstreams = nil }, []string{"upstreams: ", "mirror.default: "}},
		{"default not configured", func(c *daemon.Config) { c.Mirror.Default = "quay.example" }, []string{`mirror.default: "quay.example" is not among the upstreams`}},
		{"default under *", func(c *daemon.Config) { c.Mirror.Default = "quay.example"; c.Upstreams["*"] = daemon.Upstream{} }, nil},
		{"default is *", func(c *daemon.Config) { c.Mirror.Default = "*"; c.Upstreams["*"] = daemon.Upstream{} }, []string{"mirror.default: "}},
		{"no default", func(c *daemon.Config) { c.Mirror.Default = "" }, nil},
		{"* with settings", up("*", daemon.Upstream{URL: "http://10.0.0.1"}), []string{"upstreams.*: stands for any registry"}},
		{"* with credentials", up("*", daemon.Upstream{CredentialsFile: "/c"}), []string{"upstreams.*: "}},
		{"upstream with path", up("ghcr.io/team", daemon.Upstream{}), []string{"upstreams.ghcr.io/team: is not a registry"}},
		{"upstream with scheme", up("https://ghcr.io", daemon.Upstream{}), []string{"is not a registry"}},
		{"upstream in capitals", up("GHCR.io", daemon.Upstream{}), []string{"is not a registry"}},
		{"upstream with a percent sign", up("%d", daemon.Upstream{}), []string{"upstreams.%d: is not"}},
		{"upstream's port", up("r.example.com:99999", daemon.Upstream{}), []string{"is not a registry"}},
		{"upstreams that are fine", func(c *daemon.Config) {
			for _, name := range []string{"localhost", "localhost:5000", "registry.local:5000", "[::1]:5000", "10.0.0.1"} {
				c.Upstreams[name] = daemon.Upstream{}
			}
		}, nil},
		{"url and urls", up("r.example.com", daemon.Upstream{URL: "https://a", URLs: []string{"https://b"}}), []string{"has both url and urls"}},
		{"url without scheme", up("r.example.com", daemon.Upstream{URL: "10.0.0.3:5000"}), []string{"upstreams.r.example.com.url: "}},
		{"url with odd scheme", up("r.example.com", daemon.Upstream{URLs: []string{"https://a", "ftp://b"}}), []string{`"ftp://b" is not the address`}},
		{"url with query", up("r.example.com", daemon.Upstream{URL: "https://a/?x=1"}), []string{".url: "}},
		{"url with password", up("r.example.com", daemon.Upstream{URL: "https://u:hunter2@a"}), []string{"https://u:xxxxx@a has credentials in it"}},
		{"unparsable url with password", up("r.example.com", daemon.Upstream{URL: "https://u:hunter2@a\x7f"}), []string{".url: is not a URL"}},
		{"realm", with(func(u *daemon.Upstream) { u.Realms = []string{"https://auth.example.com/token"} }), []string{".realms: "}},
		{"allow pattern", with(func(u *daemon.Upstream) { u.Allow = []string{"team/["} }), []string{".allow: "}},

		{"auth node", with(func(*daemon.Upstream) {}), nil},
		{"auth unknown", with(func(u *daemon.Upstream) { u.Auth = "basic" }), []string{`.auth: "basic" is not a value`}},
		{"passthrough with credentials", with(func(u *daemon.Upstream) { u.Auth = "passthrough" }), []string{"passthrough uses the callers' own"}},
		{"passthrough", up("r.example.com", daemon.Upstream{Auth: "passthrough", Basic: true, GrantTTL: time.Second}), nil},
		{"grant too long", up("r.example.com", daemon.Upstream{Auth: "passthrough", GrantTTL: time.Hour}), []string{"grantTTL: 1h0m0s is not from 0s to 1m0s"}},
		{"basic without passthrough", up("r.example.com", daemon.Upstream{Basic: true, GrantTTL: time.Second}), []string{".basic: ", ".grantTTL: "}},
		{"auth of another kind", with(func(u *daemon.Upstream) { u.Auth = "ldap" }), []string{"anonymous or node or passthrough"}},

		{"sockets", func(c *daemon.Config) { c.Mirror.Listen, c.Admin.Listen = "unix:/run/m.sock", "unix:/run/a.sock" }, nil},
		{"relative socket", func(c *daemon.Config) { c.Mirror.Listen, c.Admin.Listen = "unix:/run/m.sock", "unix:m.sock" }, []string{"admin.listen: unix: needs the absolute path"}},
		{"one socket for two doors", func(c *daemon.Config) { c.Mirror.Listen, c.Admin.Listen = "unix:/run/m.sock", "unix:/run/m.sock" }, []string{"admin.listen: unix:/run/m.sock is the same as"}},
		{"half a certificate", func(c *daemon.Config) { c.Mirror.TLS.Cert, c.Admin.TLS.Key = "/c", "/k" }, []string{"mirror.tls: cert and key", "admin.tls: cert and key"}},
		{"networks", func(c *daemon.Config) { c.Mirror.AllowFrom = []string{"10.0.0.0/8", "::1"} }, nil},
		{"no network", func(c *daemon.Config) { c.Mirror.AllowFrom = []string{"10.0.0.0/40"} }, []string{"mirror.allowFrom: "}},
		{"nobody let in", func(c *daemon.Config) { c.Mirror.MaxConnections, c.Mirror.MaxRequests = 0, -1 }, []string{"mirror.maxConnections: 0", "mirror.maxRequests: -1"}},
		{"proxy", func(c *daemon.Config) {
			c.Proxy.Listen, c.Proxy.Intercept = "127.0.0.1:7054", []string{"ghcr.io", "*.gcr.io", "registry-1.docker.io"}
		}, nil},
		{"proxy of what is not configured", func(c *daemon.Config) { c.Proxy.Intercept = []string{"example.com", "*", "*.*"} },
			[]string{`proxy.intercept: "example.com" is no configured upstream`, `proxy.intercept: "*"`, `proxy.intercept: "*.*"`}},
		{"proxy of any registry", func(c *daemon.Config) {
			c.Upstreams["*"], c.Proxy.Intercept = daemon.Upstream{}, []string{"example.com"}
		}, nil},
		{"open proxy", func(c *daemon.Config) { c.Proxy.Listen = ":7054" }, []string{"proxy.allowFrom: proxy.listen (:7054)"}},
		{"open proxy without tunnel", func(c *daemon.Config) { c.Proxy.Listen, c.Proxy.Tunnel = ":7054", false }, nil},
		{"proxy port", func(c *daemon.Config) { c.Proxy.Ports = []string{"443", "https", "0"} }, []string{`proxy.ports: "https"`, `proxy.ports: "0"`}},
		{"admin abroad", func(c *daemon.Config) { c.Admin.Listen = ":7053" }, []string{"admin.listen: :7053 can be reached"}},
		{"admin abroad with a token", func(c *daemon.Config) {
			c.Admin.Listen, c.Admin.Tokens = ":7053", []daemon.AdminToken{{Name: "ops", Role: "operate", File: "/t"}}
			c.Admin.TLS = daemon.TLSConfig{Cert: "/c", Key: "/k"}
		}, nil},
		{"admin abroad with a token in the clear", func(c *daemon.Config) {
			c.Admin.Listen, c.Admin.Tokens = ":7053", []daemon.AdminToken{{Name: "ops", Role: "operate", File: "/t"}}
		}, []string{"admin.tls: admin.listen (:7053)"}},
		{"metrics abroad", func(c *daemon.Config) { c.Admin.Listen, c.Admin.OpenMetrics = ":7053", true }, nil},
		{"rule about signatures without keys", func(c *daemon.Config) {
			c.Policy.Rules = []rules.Rule{{Name: "r", If: `!("release" in signedBy)`, Do: "deny"}}
		}, []string{"policy.signatures: rules ask who has signed"}},
		{"admin words", func(c *daemon.Config) {
			c.Admin.LocalRole, c.Admin.Tokens = "root", []daemon.AdminToken{{Role: "boss"}}
		}, []string{`admin.localRole: "root"`, "admin.tokens: an entry lacks", `admin.tokens.role: "boss"`}},
		{"client certificates without TLS", func(c *daemon.Config) {
			c.Admin.ClientCA, c.Admin.Certificates = "/ca", []daemon.AdminCertificate{{Name: "*", Role: "view"}}
		}, []string{"admin.clientCA: client certificates need admin.tls"}},
		{"client CA alone", func(c *daemon.Config) { c.Admin.ClientCA, c.Admin.TLS = "/ca", daemon.TLSConfig{Cert: "/c", Key: "/k"} }, []string{"clientCA and certificates go together"}},
		{"audit", func(c *daemon.Config) { c.Audit.MaxSize, c.Audit.KeepDays = 0, -1 }, []string{"audit.maxSize: 0", "audit.keepDays: -1"}},
		{"policy word", func(c *daemon.Config) { c.Policy.Default = "maybe" }, []string{`policy.default: "maybe" is neither`}},
		{"policy mode", func(c *daemon.Config) { c.Policy.Mode = "silent" }, []string{`policy.mode: "silent"`}},
		{"rule", func(c *daemon.Config) { c.Policy.Rules = []rules.Rule{{Name: "r", If: "tag ==", Do: "deny"}} }, []string{"policy.rules"}},
		{"signature without a key", func(c *daemon.Config) { c.Policy.Signatures = []signature.Key{{Name: "k"}} }, []string{"policy.signatures"}},
		{"credentials unused", with(func(u *daemon.Upstream) { u.Auth = "" }), []string{"write auth: node"}},
		{"node without allow", with(func(u *daemon.Upstream) { u.Allow = nil }), []string{".allow: is needed with auth: node"}},
		{"node without credentials", with(func(u *daemon.Upstream) { u.Username, u.PasswordFile = "", "" }), []string{"node needs credentials"}},
		{"node without password", with(func(u *daemon.Upstream) { u.PasswordFile = "" }), []string{"go together"}},
		{"node with both", with(func(u *daemon.Upstream) { u.CredentialsFile = "/c" }), []string{"keep one of the two"}},
		{"node with a file", with(func(u *daemon.Upstream) { u.Username, u.PasswordFile, u.CredentialsFile = "", "", "/c" }), nil},

		{"all mistakes at once", func(c *daemon.Config) { c.Zone, c.Mirror.Listen, c.Log.Level = "/", "x", "y" }, []string{"zone: ", "mirror.listen: ", "log.level: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := resolved(t, daemon.Default())
			tt.change(&c)
			err := c.Validate()
			var got []string
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if strings.Contains(strings.Join(got, ""), "hunter2") {
				t.Error("a password is in the message")
			}
			if len(got) < len(tt.want) || len(tt.want) == 0 && len(got) > 0 {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for _, want := range tt.want {
				if !strings.Contains(strings.Join(got, "\n"), want) {
					t.Errorf("got %q, want one that says %q", got, want)
				}
			}
			if len(got) > len(tt.want) {
				t.Errorf("got %d mistakes, want %d: %q", len(got), len(tt.want), got)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	hostname, err := os.Hostname()
	if err != nil {
		t.Skip(err)
	}
	daemonWith := func(change func(*daemon.Config)) daemon.Config {
		c := daemon.Default()
		c.Peer.Listen, c.Gossip.Listen = "", ""
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name                            string
		in                              daemon.Config
		nodeName, peer, gossip, address string // address "" is not checked
	}{
		{"alone", daemonWith(func(*daemon.Config) {}), hostname, "127.0.0.1:7051", "127.0.0.1:7052", "127.0.0.1"},
		{"in a fleet by secret", daemonWith(func(c *daemon.Config) { c.Gossip.SecretFile = "/s" }), hostname, ":7051", ":7052", ""},
		{"in a fleet by join", daemonWith(func(c *daemon.Config) { c.Gossip.Join = []string{"127.0.0.1:1"} }), hostname, ":7051", ":7052", "127.0.0.1"},
		{"second join address", daemonWith(func(c *daemon.Config) { c.Gossip.Join = []string{"nonsense", "127.0.0.1:1"} }), hostname, ":7051", ":7052", "127.0.0.1"},
		{"join over IPv6", daemonWith(func(c *daemon.Config) { c.Gossip.Join = []string{"[::ffff:127.0.0.1]:1"} }), hostname, ":7051", ":7052", "127.0.0.1"},
		{"scheduler", daemon.DefaultScheduler(), hostname, ":7051", ":7052", ""},
		{"given", daemonWith(func(c *daemon.Config) {
			c.Name, c.Peer.Listen, c.Gossip.Listen, c.Advertise = "n", ":1", ":2", "10.0.0.7"
		}), "n", ":1", ":2", "10.0.0.7"},
		{"listening at one address", daemonWith(func(c *daemon.Config) {
			c.Peer.Listen, c.Gossip.Join = "10.1.2.3:7051", []string{"127.0.0.1:1"}
		}), hostname, "10.1.2.3:7051", ":7052", "10.1.2.3"},
		{"localhost", daemonWith(func(c *daemon.Config) { c.Peer.Listen = "localhost:7051" }), hostname, "localhost:7051", "127.0.0.1:7052", "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := tt.in.Resolve(t.Context())
			if err != nil && tt.address == "" {
				// A machine without a route, such as a namespace with loopback
				// only, is told to set the key.
				if !strings.Contains(err.Error(), "set advertise") {
					t.Fatal(err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if c.Name != tt.nodeName || c.Peer.Listen != tt.peer || c.Gossip.Listen != tt.gossip {
				t.Errorf("got %q, %q, %q", c.Name, c.Peer.Listen, c.Gossip.Listen)
			}
			if tt.address != "" && c.Advertise != tt.address {
				t.Errorf("advertise is %q, want %q", c.Advertise, tt.address)
			}
			again, err := c.Resolve(t.Context())
			if err == nil && (again.Name != c.Name || again.Advertise != c.Advertise || again.Peer != c.Peer) {
				t.Errorf("resolving twice changed %+v to %+v", c, again)
			}
		})
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	file := func(content string) string {
		name := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	secret := strings.Repeat("s", daemon.MinSecret)
	if got, err := (daemon.GossipConfig{SecretFile: file(" " + secret + "\n")}).Secrets(); err != nil || len(got) != 1 || string(got[0]) != secret {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := (daemon.GossipConfig{SecretFile: file(secret + "\r\n\n" + secret + "2\n")}).Secrets(); err != nil || len(got) != 2 || string(got[0]) != secret || string(got[1]) != secret+"2" {
		t.Errorf("two of them: got %q, %v", got, err)
	}
	if got, err := (daemon.GossipConfig{}).Secrets(); err != nil || got != nil {
		t.Errorf("without a file: %q, %v", got, err)
	}
	for _, tt := range []struct{ content, want string }{
		{"\n", "is empty"},
		{secret[1:] + "\n", "needs at least 16; make one with: head"},
		{secret + "\nshort\n", "needs at least 16; make one with: head"},
		{secret + "\n" + secret + "\n" + secret + "\n", "has 3 lines; one is the secret"},
	} {
		_, err := (daemon.GossipConfig{SecretFile: file(tt.content)}).Secrets()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.content, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), secret[1:]) {
			t.Errorf("the secret is in the message: %v", err)
		}
	}
	if _, err := (daemon.GossipConfig{SecretFile: "/nowhere/secret"}).Secrets(); err == nil || !strings.Contains(err.Error(), "gossip.secretFile: open /nowhere/secret") {
		t.Errorf("missing file: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		u    daemon.Upstream
		want string
	}{
		{daemon.Upstream{}, ""},
		{daemon.Upstream{URL: "https://a"}, "https://a"},
		{daemon.Upstream{URLs: []string{"https://a", "https://b"}}, "https://a https://b"},
	} {
		if got := strings.Join(tt.u.Addresses(), " "); got != tt.want {
			t.Errorf("%+v: got %q, want %q", tt.u, got, tt.want)
		}
	}
}
