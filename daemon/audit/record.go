package audit

import (
	"time"
)

// Verdicts of a Record.
const (
	Admitted  = "admitted"
	Denied    = "denied"
	WouldDeny = "would-deny" // admitted, since the policy only audits
)

// A Record is one line of the audit log: who got or was refused what, and why.
// What is empty is left out. There is no field for a secret, and none may go
// into another.
type Record struct {
	// Time of the answer's end. Write sets it if it is zero.
	Time time.Time `json:"time"`
	// Node is the name of the node. Write sets it.
	Node string `json:"node,omitempty"`
	// Door is the way the request came: mirror, proxy or job.
	Door string `json:"door,omitempty"`
	// Client is the client's IP address, or "unix". User is who it says it is,
	// which the registry may have checked and nobody here has.
	Client string `json:"client,omitempty"`
	User   string `json:"user,omitempty"`
	// Upstream, Repository, Reference (a tag or a digest, as it was asked for)
	// and Digest (what was answered) say what.
	Upstream   string `json:"upstream,omitempty"`
	Repository string `json:"repository,omitempty"`
	Reference  string `json:"reference,omitempty"`
	Digest     string `json:"digest,omitempty"`
	// Kind is manifest, blob or list.
	Kind string `json:"kind,omitempty"`
	// Verdict is one of the constants above. Rule is the one that decided,
	// Reason what it or the registry said.
	Verdict string `json:"verdict"`
	Rule    string `json:"rule,omitempty"`
	Reason  string `json:"reason,omitempty"`
	// Status is that of the HTTP answer.
	Status int `json:"status,omitempty"`
	// Source is where the bytes came from: disk, fleet, origin; or client, for
	// what the proxy's client got from the registry with its own credentials.
	Source string `json:"source,omitempty"`
	// Bytes of content that went to the client.
	Bytes int64 `json:"bytes"`
	// Took is how long the request took.
	Took time.Duration `json:"-"`
}
