package signature

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/cache"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy/rules"
)

// Config is what New needs. Origin and Index are required.
type Config struct {
	Origin *origin.Client
	Index  *cache.Index
	Keys   []Key
	Gates  []Gate

	// Log gets a line at debug level per signature that is not accepted, with
	// the reason. Nil is silent.
	Log *slog.Logger
	// Registry gets the metrics. Nil counts without registering.
	Registry prometheus.Registerer
}

// A Key is somebody whose signatures are believed. Exactly one of Cosign,
// Keyless and Notation is set.
type Key struct {
	// Name is what rules and messages call it, as in
	// `"release" in signedBy`.
	Name string `koanf:"name"`

	// Repositories lists where a signature by this key is required, as patterns
	// such as docker.io/library/nginx, ghcr.io/team/* (directly below) or
	// ghcr.io/team/** (however deep). Where several keys are required, all must
	// have signed. Default: nowhere; rules may ask for it all the same.
	Repositories []string `koanf:"repositories"`

	Cosign   Cosign   `koanf:"cosign"`
	Keyless  Keyless  `koanf:"keyless"`
	Notation Notation `koanf:"notation"`

	// Predicates lists types of in-toto statements that count as signatures
	// beside cosign's own, such as https://slsa.dev/provenance/v1 for images
	// that only have a build provenance. Default: none, since who attests
	// something about an image has not approved of it.
	Predicates []string `koanf:"predicates"`
}

// Cosign is a key pair.
type Cosign struct {
	// Key is a PEM file of public keys (cosign.pub). A signature by any of them
	// counts, so that keys can be changed without a gap.
	Key string `koanf:"key"`
}

// Keyless is an identity that a Sigstore deployment vouches for.
type Keyless struct {
	// TrustRoot is a trusted_root.json: the certificate authorities, logs and
	// timestamp authorities of the deployment. It is never fetched or renewed by
	// the daemon. What the file names is demanded: a log entry if it has
	// transparency logs, an SCT if it has certificate logs.
	TrustRoot string `koanf:"trustRoot"`
	// Identity is a regular expression for the whole of the certificate's
	// subject alternative name, an e-mail address or URI.
	Identity string `koanf:"identity"`
	// Issuer is the OIDC issuer that has to stand in the certificate, exactly.
	Issuer string `koanf:"issuer"`
}

// Notation is an X.509 identity by the Notary Project's specifications.
type Notation struct {
	// Certificates are PEM files of the CAs, or self-signed certificates, to
	// trust.
	Certificates []string `koanf:"certificates"`
	// Identities are the subjects to trust among theirs, such as
	// "x509.subject: C=DE, ST=Berlin, O=Team", or "*" for all of them.
	Identities []string `koanf:"identities"`
}

// A Gate lets an image pass by the result of a vulnerability scan that is
// attached to it and signed.
type Gate struct {
	// Name is what messages call it.
	Name string `koanf:"name"`

	// Repositories lists where it stands, as Key.Repositories. Default: none.
	Repositories []string `koanf:"repositories"`

	// Key is the name of the key that has to have signed the result. It cannot
	// be one of notation, which signs images and not statements about them. A
	// key without repositories that a gate names is for scans only.
	Key string `koanf:"key"`

	// MaxSeverity is the gravest that may be found: none, unknown, negligible,
	// low, medium, high or critical. Critical asks for no more than a result.
	// Default: medium.
	MaxSeverity string `koanf:"maxSeverity"`

	// MaxAge is how long ago the scan may have finished, such as 168h.
	// Default: any time. Set it: without it, who controls the registry can show
	// the result of years ago.
	MaxAge time.Duration `koanf:"maxAge"`

	// Types are the predicate types that are read. Default: all that are known.
	Types []string `koanf:"types"`

	// Ignore lists vulnerabilities that do not count, such as CVE-2024-3094.
	Ignore []string `koanf:"ignore"`

	// Missing is what becomes of an image without a result: deny or allow. One
	// whose result is too old or cannot be read is denied either way.
	// Default: deny.
	Missing string `koanf:"missing"`
}

// Validate says what is wrong with keys and gates, without reading a file.
func Validate(keys []Key, gates []Gate) error {
	var errs []error
	names := map[string]bool{}
	for i, k := range keys {
		if err := k.validate(); err != nil {
			errs = append(errs, fmt.Errorf("key %d, %q: %w", i+1, k.Name, err))
		}
		if names[k.Name] {
			errs = append(errs, fmt.Errorf("key %d: there is another one called %q", i+1, k.Name))
		}
		names[k.Name] = true
	}
	seen := map[string]bool{}
	for i, g := range gates {
		if err := g.validate(keys); err != nil {
			errs = append(errs, fmt.Errorf("vulnerability gate %d, %q: %w", i+1, g.Name, err))
		}
		if seen[g.Name] {
			errs = append(errs, fmt.Errorf("vulnerability gate %d: there is another one called %q", i+1, g.Name))
		}
		seen[g.Name] = true
	}
	return errors.Join(errs...)
}

func (k *Key) validate() error {
	if k.Name == "" {
		return errors.New("it needs a name, by which rules and messages can call it")
	}
	kinds := 0
	for _, set := range []bool{k.isCosign(), k.isKeyless(), k.isNotation()} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return errors.New("set exactly one of cosign, keyless and notation")
	case k.isKeyless() && (k.Keyless.TrustRoot == "" || k.Keyless.Identity == "" || k.Keyless.Issuer == ""):
		return errors.New("keyless needs all of trustRoot, identity and issuer: without one of them anybody's signature would do")
	case k.isNotation() && (len(k.Notation.Certificates) == 0 || len(k.Notation.Identities) == 0):
		return errors.New(`notation needs certificates and identities; identities: ["*"] trusts all that the certificates vouch for`)
	case k.isNotation() && len(k.Predicates) > 0:
		return errors.New("predicates are for cosign and keyless only")
	}
	return validatePatterns(k.Repositories)
}

func (k *Key) isCosign() bool  { return k.Cosign != Cosign{} }
func (k *Key) isKeyless() bool { return k.Keyless != Keyless{} }
func (k *Key) isNotation() bool {
	return len(k.Notation.Certificates) > 0 || len(k.Notation.Identities) > 0
}

func (g *Gate) validate(keys []Key) error {
	if g.Name == "" {
		return errors.New("it needs a name, by which messages can call it")
	}
	i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == g.Key })
	switch {
	case i < 0:
		return fmt.Errorf("there is no key called %q", g.Key)
	case keys[i].isNotation():
		return fmt.Errorf("key %q is one of notation, which signs no scan results: use one of cosign", g.Key)
	case g.MaxAge < 0:
		return fmt.Errorf("maxAge %s is negative", g.MaxAge)
	case g.Missing != "" && g.Missing != "deny" && g.Missing != "allow":
		return fmt.Errorf("missing is %q: use deny or allow", g.Missing)
	}
	if g.MaxSeverity != "" && g.MaxSeverity != "none" {
		if _, ok := parseSeverity(g.MaxSeverity); !ok {
			return fmt.Errorf("maxSeverity %q: use none, unknown, negligible, low, medium, high or critical", g.MaxSeverity)
		}
	}
	for _, t := range g.Types {
		if !slices.Contains(scanTypes, t) {
			return fmt.Errorf("type %q is not known: known are %s", t, strings.Join(scanTypes, ", "))
		}
	}
	return validatePatterns(g.Repositories)
}

func validatePatterns(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("repository pattern %q: %w", p, err)
		}
		if p != "**" && !strings.Contains(p, "/") {
			return fmt.Errorf("repository pattern %q has no registry: write docker.io/library/nginx, ghcr.io/team/** or **", p)
		}
	}
	return nil
}

// matchesAny reports whether a repository of an upstream matches a pattern.
func matchesAny(patterns []string, upstream, repository string) bool {
	name := strings.ToLower(upstream) + "/" + repository
	return slices.ContainsFunc(patterns, func(p string) bool {
		// Hosts have no case, and repositories have none but lower.
		return rules.Match(strings.ToLower(p), name)
	})
}
