// Package admin is the door for operators: metrics, health, what the node is
// doing and what it is told to do, over HTTP, and the client of it that the
// command line uses.
//
//	GET    /metrics                    Prometheus
//	GET    /healthz                    200 while the process lives
//	GET    /readyz                     200, or 503 with the reason
//	GET    /v1/status                  Status
//	GET    /v1/members                 the members of the fleet, a list of Member
//	GET    /v1/pulls                   the blobs that are on their way here, a list of Pull
//
//	POST   /v1/jobs                    jobs.Spec: starts a job; 202 and the jobs.Job
//	GET    /v1/jobs                    a list of jobs.Job, the newest first
//	GET    /v1/jobs/{id}               a jobs.Job; with ?watch=1 a line with it each time it changes
//	DELETE /v1/jobs/{id}               cancels it; 409 if it has ended
//	POST   /v1/webhooks/distribution   the notification of a distribution registry; 202 and the jobs that it started
//	POST   /v1/webhooks/harbor         the same of Harbor, in either of its formats
//
//	GET    /v1/cache                   cache.Use
//	POST   /v1/cache/gc                Collection: cleans up; a cache.GCReport
//	POST   /v1/cache/scrub             {}: reads and checks everything; a cache.ScrubReport
//	GET    /v1/cache/scrub             Scrubbing: how far that is
//	GET    /v1/cache/pins              a list of cache.Pin
//	POST   /v1/cache/pins              Pattern: pins what it names
//	DELETE /v1/cache/pins?pattern=…    takes that back
//	PUT    /v1/cache/blobs/{digest}?size=…  a blob, as application/octet-stream
//	PUT    /v1/cache/images            jobs.Image: an image, after all of its blobs
//
//	GET    /v1/offline                 Mode
//	PUT    /v1/offline                 Mode: switches it
//
// Answers of /v1/ are JSON, those of an error a Failure. Fields are added, never
// renamed or given another meaning, within /v1/. A request with a field that is
// not known is refused rather than half done.
//
// # Why
//
// The handler asks through functions, one for each thing that can be asked, so
// that a test needs no fleet and a node that lacks something says 404. The types
// of jobs and of the cache are the API's own types too: there is one name and
// one description of each, at the price that their JSON may not change.
//
// /healthz looks at nothing: it is for a supervisor that restarts what hangs,
// and a node whose origin or fleet is away is not made better by a restart.
// What a node needs to be of use is for /readyz.
//
// There is no password in this version. The configuration keeps the listener
// on loopback, and whoever can reach it may command the node. What also reaches
// loopback is any web page that is open in a browser on that machine. So
// everything that changes something must have a Content-Type that a page cannot
// send without the browser asking first (Fetch standard, "CORS-safelisted
// request-header"), and must not have the Origin of another site. A page that
// gets at the node by a name of its own (DNS rebinding) is of the same origin to
// the browser. What it cannot have is the node's address for a host, so browsers
// must use that to change something; other programs may use names.
//
// A webhook comes from another machine, from a program that can send one fixed
// header at most, so its token is compared with the Authorization header, as it
// is (Harbor) or after "Bearer" (what people write into the headers of a
// distribution registry). The token lets in what a registry says, and that
// starts no more than the rules allow.
//
// A blob that is put here is checked as it comes in, and is nobody's until an
// image says so. An image is refused while something of it is missing: a backup
// with holes is found when it is read back and not when it is needed.
//
// GC and scrub are answered when they are done, and end if the client goes: a
// request that can be interrupted needs no job, no list and no cancel.
package admin
