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
//	GET    /v1/checks                  looks at what the node needs; a list of Check
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
//	GET    /v1/blocklist               what is blocked in the fleet, a list of blocklist.Entry
//	POST   /v1/blocklist               Blocking: blocks a digest or an image; what is blocked by that
//	DELETE /v1/blocklist?image=…       takes that back; what is no longer blocked
//
//	GET    /v1/offline                 Mode
//	PUT    /v1/offline                 Mode: switches it
//
// A GET takes the role view. Starting and cancelling jobs, cleaning up, scrubbing,
// pinning and switching offline take operate, and all else that changes something
// admin. /healthz and /readyz take none. A webhook takes its own token, if there
// is one.
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
// Who may do what is said by roles, since there are three kinds of people who come
// here: dashboards and scrapers that read (view), who runs the fleet (operate),
// and who answers for what is in it (admin). A route is found in a table by its
// pattern, and what changes something and is not there is for admin: a new one
// is closed until somebody has thought about it. /healthz and /readyz are open,
// since supervisors have no tokens.
//
// From this machine the way in is open unless Access.Local says otherwise: who
// has an account on a node can do worse than pull images. A request that a
// reverse proxy has passed on is not from this machine, whatever its address is:
// else one that was put before the port would open it to everybody. From
// elsewhere it takes a token or a certificate. A token is random and kept as its
// SHA-256: a slow hash, which passwords need, would let anybody keep the node
// busy.
//
// What also reaches loopback is any web page that is open in a browser on that
// machine. So everything that changes something must have a Content-Type that a
// page cannot send without the browser asking first (Fetch standard,
// "CORS-safelisted request-header"), and must not have the Origin of another
// site. A page that gets at the node by a name of its own (DNS rebinding) is of
// the same origin to the browser. What it cannot have is the node's address for
// a host, so browsers must use that to change something; other programs may use
// names.
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
