package daemon

import (
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/daemon/policy/signature"
)

// PolicyConfig says which images may be pulled through this node. Its lists and
// rules are those of package rules.
type PolicyConfig struct {
	// Default is what becomes of a pull that no rule speaks of: allow or deny.
	// Default: allow.
	Default string `koanf:"default" help:"what becomes of a pull that no rule speaks of: allow or deny"`

	// Mode is enforce, or audit: then nothing is denied, and what would have
	// been is logged. Default: enforce.
	Mode string `koanf:"mode" help:"enforce, or audit to only log what would be denied"`

	// Registries and Repositories are the only ones that may be pulled from.
	// Default: all upstreams.
	Registries   []string `koanf:"registries" help:"the only registries that may be pulled from (default: all upstreams)"`
	Repositories []string `koanf:"repositories" help:"the only repositories that may be pulled from, such as ghcr.io/team/** (default: all)"`

	// NoLatest refuses the tag latest. Default: false.
	NoLatest bool `koanf:"noLatest" help:"refuse the tag latest"`

	// Tags say what tags must look like. Default: none.
	Tags []rules.TagRule `koanf:"tags" help:"what tags must look like, as YAML: [{repositories: [ghcr.io/team/**], pattern: \"v[0-9.]+\"}]"`

	// Rules are asked in order after the lists, and the first that matches
	// decides. Default: none.
	Rules []rules.Rule `koanf:"rules" help:"rules in CEL, as YAML: [{name: signed, if: '!(\"release\" in signedBy)', do: deny}]"`

	// Signatures are the keys whose signatures are known, and where they are
	// required. Rules find who has signed in signedBy. Default: none.
	Signatures []signature.Key `koanf:"signatures" help:"keys of signatures, as YAML: [{name: release, repositories: [ghcr.io/team/**], cosign: {key: /etc/shoal/cosign.pub}}]"`

	// Scans are what signed scan results must say of an image. Default: none.
	Scans []signature.Gate `koanf:"scans" help:"demands on signed scan results, as YAML: [{name: cves, repositories: [ghcr.io/team/**], key: scanner, maxSeverity: medium, maxAge: 168h}]"`
}

// rules returns the part of it that package rules is about.
func (p PolicyConfig) rules() rules.Config {
	return rules.Config{
		Default: p.Default, Mode: p.Mode, Registries: p.Registries, Repositories: p.Repositories,
		NoLatest: p.NoLatest, Tags: p.Tags, Rules: p.Rules,
	}
}
