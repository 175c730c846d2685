package policy

import (
	"errors"
)

// ErrDenied is what a Denial is, and what a Rule may wrap, to refuse a request.
var ErrDenied = errors.New("denied by policy")

// A Denial is the error with which a rule refuses a request. errors.Is of it and
// ErrDenied is true.
type Denial struct {
	// Rule is the rule's name, and Message what whoever is refused should know.
	Rule, Message string
	// Audit says that the rule only audits: the request went on.
	Audit bool
}

func (d *Denial) Error() string {
	text := ErrDenied.Error() + ": rule " + d.Rule
	if d.Message != "" {
		text += ": " + d.Message
	}
	return text
}

// Is makes a Denial an ErrDenied.
func (d *Denial) Is(target error) bool { return target == ErrDenied }

// Names of the rules that are not in the configuration's own list of rules.
const (
	ruleAllow     = "upstreams.allow"
	ruleBlocklist = "blocklist"
	ruleSignature = "signature"
	ruleContent   = "content" // a blob of no manifest that may be served
	rulePrivate   = "private" // the word of a registry that nobody named
)

// A Ruling is what the rules said of a request that may go on.
type Ruling struct {
	// Rule is the name of the rule that let it pass; "" if none spoke of it.
	Rule string
	// Would is the rule that would have refused it if it did not only audit;
	// nil if there is none.
	Would *Denial
	// Unsigned says that signatures were looked for and none was good.
	Unsigned bool
}

// And returns what two looks at one request said.
func (r Ruling) And(later Ruling) Ruling {
	if later.Rule != "" {
		r.Rule = later.Rule
	}
	if r.Would == nil {
		r.Would = later.Would
	}
	r.Unsigned = r.Unsigned || later.Unsigned
	return r
}
