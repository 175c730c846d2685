// Package locks has tests and nothing else: that nobody gets what they may not
// have, and that nobody can keep others from what they may, with real daemons in
// front of a real registry.
//
//	matrix_test.go      every kind of caller, asking for every kind of thing, from
//	                    wherever it is
//	doors_test.go       TLS, sockets, networks, roles
//	proxy_test.go       the same callers through the forward proxy
//	policy_test.go      rules of each kind, the mode that only logs, the audit log
//	signatures_test.go  required signatures and scans, and a registry that fails
//	                    while they are looked for
//	images_test.go      images that rules can tell apart, and how they are asked for
//	fleet_test.go       private content among peers, and what a scheduler hears of it
//	rotation_test.go    the secret changes under load
//	members_test.go     strangers, the allow-list, recalled images everywhere
//	hostile_test.go     an honest client while each port of the binary is attacked
//	attacks_test.go     floods, slow clients, garbage, idle connections
//	secrets_test.go     planted secrets, looked for in all that a daemon says
//
// # Why
//
// The rooms have tests of their own parts, as in bench/keep. A lock is only as
// good as the door that nobody thought of, so these ask at the whole daemon, as
// an attacker would: all ways in, for all content, wherever it may be.
//
// "0 bytes of private content" is looked for in what came, header and body: no
// sixteen bytes of a layer may be in it. A status alone would not say that.
//
// The hostile tests run the binary, since memory is a process', and attack from
// addresses of loopback other than the one that goes on pulling meanwhile:
// limits are per client.
package locks
