package daemon

import (
	"time"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/rate"
)

// TagsConfig is how long what a tag names is believed. An upstream can have
// rules of its own, see Upstream.
type TagsConfig struct {
	// TTL is for how long a tag is not looked up again. 0 is each time.
	// Default: 60s, which a rollout of a hundred pods shares, and which whoever
	// pushes a tag anew waits at most.
	TTL time.Duration `koanf:"ttl" help:"how long a tag is believed before the origin is asked again, such as 60s"`

	// NotFound is for how long a tag that the origin does not have is
	// not asked for again. Default: 30s: a pod with a mistyped image retries
	// for ever, and somebody who pushes after a failed pull does not wait long.
	NotFound time.Duration `koanf:"notFound" help:"how long the origin's 404 is believed, such as 30s"`

	// Revalidate is for how long after TTL a tag is still served at once while
	// the origin is asked behind it. 0 is never. Default: 60s, as TTL, so that
	// of a tag that is in use nobody ever waits for a lookup.
	Revalidate time.Duration `koanf:"revalidate" help:"how long after ttl a tag is still served at once while the origin is asked, such as 60s"`

	// MaxStale is for how long after the last lookup a tag is served, with a
	// warning, if the origin is down, too slow, or answers 429 or 5xx. It is
	// never served if the origin refuses it. Default: 168h, a week: longer than
	// an outage, shorter than it takes to forget about one.
	MaxStale time.Duration `koanf:"maxStale" help:"how long a tag is served while the origin cannot be asked, such as 168h"`
}

// CacheConfig is how much is kept, what for, and who looks after it.
type CacheConfig struct {
	// Quota is the most that the blobs may take: bytes (200GiB), or a share of
	// the file system (50%). Default: 50%, since the runtime keeps the images of
	// the node on the same file system more often than not.
	Quota cache.Amount `koanf:"quota" help:"most that the blobs may take, such as 200GiB, or 50% of the file system"`

	// Reserve is how much of the file system is left free, whatever the quota:
	// below it nothing is kept, and pulls are streamed through. Default: 5%.
	Reserve cache.Amount `koanf:"reserve" help:"how much of the file system stays free, such as 10GiB or 5%"`

	// High and Low are the shares of the quota at which eviction begins and
	// ends. Default: 95% and 85%, so that it runs seldom and in larger steps.
	High cache.Amount `koanf:"high" help:"share of the quota at which eviction begins, such as 95%"`
	Low  cache.Amount `koanf:"low" help:"share of the quota at which eviction ends, such as 85%"`

	// Keep is for how long after somebody has asked for it a blob is not
	// evicted. Default: 10m: a runtime that has the manifest comes for the
	// layers within that time, and half of the runtimes have no way back.
	Keep time.Duration `koanf:"keep" help:"how long a blob that was asked for is not evicted, such as 10m"`

	// GC is when space is made and what has outlived its use removed, as a cron
	// expression in the node's local time; "" is only when the quota needs it.
	// Default: "17 * * * *", once an hour.
	GC string `koanf:"gc" help:"when to collect garbage, as a cron expression; empty for only when space is short"`

	// DryRun makes the scheduled GC say what it would remove and remove
	// nothing. Default: false.
	DryRun bool `koanf:"dryRun" help:"scheduled garbage collections only say what they would remove"`

	// Pins are what is never evicted: digests, image references, or patterns of
	// references ("docker.io/library/*:3*", "ghcr.io/team/**"). Others are set
	// at run time with `shoal cache pin`. Default: none.
	Pins []string `koanf:"pins" help:"what is never evicted: digests, images or patterns such as ghcr.io/team/*:v*"`

	// Adopt lists content stores of containerd on this node. What is in them is
	// served to peers and clients without a second copy. Default: none, since
	// the daemon needs the right to read them.
	Adopt []string `koanf:"adopt" help:"content stores of containerd whose blobs are shared, such as /var/lib/containerd/io.containerd.content.v1.content"`

	// Scrub is when all blobs are read and checked again, as a cron expression;
	// "" is never. Default: "0 3 * * 6", Saturdays at three: disks lose bits
	// over months.
	Scrub string `koanf:"scrub" help:"when to check all blobs again, as a cron expression; empty for never"`

	// ScrubRate is how fast the scrub reads. Default: 160mbit, 20 MB/s, which a
	// node's disk does not notice and which is a terabyte in 14 hours.
	ScrubRate rate.Rate `koanf:"scrubRate" help:"how fast the scrub reads, such as 160mbit"`

	// Finish completes the pull of a blob that all clients have gone away from.
	// Default: true, since they mostly come back, and the fleet has chunks of it
	// by then.
	Finish bool `koanf:"finish" help:"complete a pull whose clients have all gone away"`
}

// PrefetchConfig is an image that is brought here at certain times.
type PrefetchConfig struct {
	// Image is its reference, such as docker.io/library/alpine:3.
	Image string `koanf:"image"`
	// At is when, as a cron expression in the node's local time: "0 5 * * *".
	At string `koanf:"at"`
	// Platforms are those of an index that are wanted, such as linux/arm64;
	// none is the node's own. AllPlatforms is all.
	Platforms    []string `koanf:"platforms"`
	AllPlatforms bool     `koanf:"allPlatforms"`
	// Nodes says which nodes get it: "" this one, "all", "zone:eu/berlin", or
	// "25%".
	Nodes string `koanf:"nodes"`
}

// WebhookConfig is what to do when a registry tells of a push.
type WebhookConfig struct {
	// TokenFile holds the token that the registry sends as Authorization.
	// Default: none; then whoever reaches the admin door can start the jobs of
	// the rules.
	TokenFile string `koanf:"tokenFile" help:"file with the token that registries send with their notifications"`

	// Rules say which pushes start a job that brings the image to nodes. The
	// first that matches counts. Default: none.
	Rules []WebhookRule `koanf:"rules" help:"pushes that start a prefetch, as YAML: [{repository: team/*, tag: v*, nodes: all}]"`
}

// Token reads TokenFile, without the white space around it; it is empty if
// there is no such file configured.
func (w WebhookConfig) Token() (string, error) {
	if w.TokenFile == "" {
		return "", nil
	}
	token, err := readSecret("webhook.tokenFile", w.TokenFile)
	return string(token), err
}

// WebhookRule matches pushes.
type WebhookRule struct {
	// Registry is the host that the notification is about, as it calls itself;
	// "" is any.
	Registry string `koanf:"registry"`
	// Repository and Tag are path.Match patterns; "" is any, and a repository
	// pattern that ends in "/**" is all below.
	Repository string `koanf:"repository"`
	Tag        string `koanf:"tag"`
	// Upstream is the name under which nodes pull from that registry. Default:
	// the host that the notification names.
	Upstream string `koanf:"upstream"`
	// Platforms, AllPlatforms and Nodes are as those of a PrefetchConfig.
	Platforms    []string `koanf:"platforms"`
	AllPlatforms bool     `koanf:"allPlatforms"`
	Nodes        string   `koanf:"nodes"`
}

// defaultTags returns what Default has.
func defaultTags() TagsConfig {
	return TagsConfig{TTL: time.Minute, NotFound: 30 * time.Second, Revalidate: time.Minute, MaxStale: 7 * 24 * time.Hour}
}

// defaultCache returns what Default has.
func defaultCache() CacheConfig {
	return CacheConfig{
		Quota: cache.Percent(50), Reserve: cache.Percent(5), High: cache.Percent(95), Low: cache.Percent(85),
		Keep: 10 * time.Minute, GC: "17 * * * *", Scrub: "0 3 * * 6", ScrubRate: 160_000_000 / 8, Finish: true,
	}
}
