package rules

// Config is the policy of a node, the part of the configuration under policy.
// The tags name the keys as they stand in the file. The zero Config allows
// everything.
type Config struct {
	// Default is what happens to a request that no rule matches: "allow" or
	// "deny". Default: allow, since a pull-through cache that refuses what
	// nobody spoke of is of no use until somebody did.
	Default string `koanf:"default" help:"what no rule matches: allow or deny"`

	// Mode is "enforce" or "audit". With audit nothing is refused: what would
	// have been is in the audit log and the metrics as would-deny.
	// Default: enforce.
	Mode string `koanf:"mode" help:"enforce, or audit to refuse nothing and log what would have been refused"`

	// Registries are the only ones that may be pulled from, by the names that
	// images have, such as "ghcr.io" and "registry.local:5000". A * stands for
	// any letters but /. Default: none, which allows all.
	Registries []string `koanf:"registries" help:"the only registries that may be pulled from (default: all)"`

	// Repositories are the only ones that may be pulled from, with their
	// registry: "docker.io/library/*", "ghcr.io/team/**". A * stands for any
	// letters but /, a closing /** for everything below. With Registries, both
	// must have it. Default: none, which allows all.
	Repositories []string `koanf:"repositories" help:"the only repositories that may be pulled from, such as ghcr.io/team/** (default: all)"`

	// NoLatest refuses the tag latest, which says nothing about what it names.
	// A pull by digest has no tag. Default: false.
	NoLatest bool `koanf:"noLatest" help:"refuse the tag latest"`

	// Tags say what tags must look like. Default: none.
	Tags []TagRule `koanf:"tags" help:"what tags must look like, as YAML: [{repositories: [ghcr.io/team/**], pattern: \"v[0-9.]+\"}]"`

	// Rules are asked in order after all of the above, and the first that
	// matches decides. Default: none.
	Rules []Rule `koanf:"rules" help:"rules in CEL, as YAML: [{name: signed, if: '!(\"release\" in signedBy)', do: deny}]"`
}

// A TagRule says what the tags of some repositories must look like. Without a
// tag, as in a pull by digest, there is nothing to look at.
type TagRule struct {
	// Repositories it is for, as in Config.Repositories. None: all.
	Repositories []string `koanf:"repositories"`
	// Pattern is a regular expression (RE2) that the whole tag must match.
	Pattern string `koanf:"pattern"`
}

// A Rule decides requests that its condition is true of.
type Rule struct {
	// Name is told to whoever is refused, and is in the audit log. Letters,
	// digits, and . _ - only; no two rules have the same one.
	Name string `koanf:"name"`
	// If is the condition, a CEL expression that is true or false; see the
	// package's documentation for what it can speak of.
	If string `koanf:"if"`
	// Do is what happens when it is true: "allow" or "deny".
	Do string `koanf:"do"`
	// Message is what whoever is refused should know or do.
	Message string `koanf:"message"`
	// Mode "audit" makes of a rule that denies one that only logs. Default:
	// that of the Config.
	Mode string `koanf:"mode"`
}
