// Package admin is the door for operators: metrics, health and what the node
// is doing, over HTTP, and the client of it that the command line uses.
//
//	GET /metrics     Prometheus
//	GET /healthz     200 while the process lives
//	GET /readyz      200, or 503 with the reason
//	GET /v1/status   Status
//	GET /v1/members  the members of the fleet, a list of Member
//	GET /v1/pulls    the blobs that are on their way here, a list of Pull
//
// Answers of /v1/ are JSON. Fields are added, never renamed or given another
// meaning, within /v1/.
//
// # Why
//
// The handler asks through two functions, Status and Ready, so that the room
// knows nothing of the others and a test needs no fleet.
//
// /healthz looks at nothing: it is for a supervisor that restarts what hangs,
// and a node whose origin or fleet is away is not made better by a restart.
// What a node needs to be of use is for /readyz.
//
// There is no password in this version. The configuration keeps the listener
// on loopback; whoever can reach it may read which images the node pulls and
// from whom, but change nothing: all there is is GET.
package admin
