package rules

import "time"

// What a request is for.
const (
	KindManifest = "manifest"
	KindBlob     = "blob"
	KindList     = "list" // of tags or of referrers: there is no content to look at
)

// Facts are what is known of one request.
type Facts struct {
	// Kind is one of the constants above.
	Kind string
	// Registry is the upstream by the name that images have ("docker.io"),
	// Repository its repository ("library/alpine").
	Registry, Repository string
	// Tag is that of the request, "" in one by digest. Digest is "" while a tag
	// is not resolved.
	Tag, Digest string
	// Client is who asks.
	Client Client

	// HasContent says that the fields below, and Digest, are known.
	HasContent bool
	// Platform is os/architecture or os/architecture/variant of the image, ""
	// of what has none: an index, an artifact.
	Platform string
	// MediaType is that of the manifest, Annotations its annotations.
	MediaType   string
	Annotations map[string]string
	// Age is how long ago the image was made, as it says itself; 0 if that is
	// yet to come, negative if it does not say.
	Age time.Duration
	// SignedBy returns the names of the keys that have signed the manifest. It
	// is called at most once in a Judge, and only if a rule wants to know. Its
	// error means that nobody can say now.
	SignedBy func() ([]string, error)
}

// A Client is who asks, as far as known.
type Client struct {
	// Door is the way the request came: mirror, proxy or job.
	Door string
	// Address is the client's IP address, or "unix".
	Address string
	// User is who it says it is; nobody has checked that.
	User string
}

// A Verdict is what the rules say.
type Verdict struct {
	// Decided is false if a rule that comes before all that match speaks of
	// content that is not known yet: judge again with HasContent. Nothing else
	// is set then.
	Decided bool
	// Allow says whether the request may go on.
	Allow bool
	// Rule is the name of the one that decided; "" where no rule matched and
	// the default is to allow, "default" where it is to deny. With Audit it is
	// the first one that would have denied.
	Rule string
	// Message says why it was (or would have been) denied, for a person.
	Message string
	// Audit says that the request would have been denied, were it not for the
	// mode audit.
	Audit bool
}
