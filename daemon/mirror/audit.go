package mirror

import (
	"errors"
	"net/http"
	"time"

	"github.com/shoal-project/shoal/daemon/audit"
	"github.com/shoal-project/shoal/daemon/door"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
)

// caller returns who sent a request.
func caller(name string, r *http.Request) policy.Caller {
	authorization := r.Header.Get("Authorization")
	return policy.Caller{
		Door: name, Addr: door.ClientAddr(r),
		Authorization: authorization, User: policy.UserOf(authorization),
	}
}

// maxReason bounds the reason of a record in bytes.
const maxReason = 512

// auditSources are the names that the audit log has for where content is from.
var auditSources = map[string]string{
	sourceHit: "disk", sourcePeer: "fleet", sourceOrigin: "origin", sourceThrough: "origin", sourceOwn: "client",
}

// record writes what became of a visit to the audit log: of each GET of content
// that was answered, and of each refusal. A challenge to one who has not shown a
// token yet is the beginning of a login, and no refusal.
func (h *Handler) record(w *response, r *http.Request, v *visit, content int64, err error) {
	if h.audit == nil {
		return
	}
	rec := audit.Record{
		Time: time.Now(), Door: v.who.Door, Client: v.who.Addr, User: v.who.User,
		Upstream: v.ref.Upstream, Repository: v.ref.Repository, Reference: v.reference(),
		Kind: auditKind(v.kind), Status: w.status, Bytes: content, Took: time.Since(v.start),
	}
	switch {
	case w.status == http.StatusForbidden || w.status == http.StatusUnauthorized:
		if w.status == http.StatusUnauthorized && v.who.Authorization == "" {
			return
		}
		rec.Verdict = audit.Denied
		rec.Rule, rec.Reason = refusal(err)
	case (v.kind == kindManifest || v.kind == kindBlob) && r.Method == http.MethodGet && w.status != 0 && w.status < http.StatusBadRequest:
		rec.Verdict, rec.Rule = audit.Admitted, v.ruling.Rule
		if d := v.ruling.Would; d != nil {
			rec.Verdict, rec.Rule, rec.Reason = audit.WouldDeny, d.Rule, d.Message
		} else if err != nil {
			rec.Reason = err.Error() // it was cut short
		}
		rec.Source = auditSources[h.contentSource(w, v)]
		if !v.digest.IsZero() {
			rec.Digest = v.digest.String()
		}
		if v.source == sourceOwn {
			rec.Bytes = w.bytes
		}
	default:
		return
	}
	if len(rec.Reason) > maxReason {
		rec.Reason = rec.Reason[:maxReason] + "…"
	}
	h.audit(rec)
}

func auditKind(k kind) string {
	switch k {
	case kindTags, kindReferrers:
		return "list"
	}
	return string(k)
}

// refusal returns the rule that refused with err, and why.
func refusal(err error) (rule, reason string) {
	if d, ok := errors.AsType[*policy.Denial](err); ok {
		return d.Rule, d.Message
	}
	switch {
	case err == nil:
		return "registry", "" // it answered the client itself
	case errors.Is(err, origin.ErrDenied):
		return "registry", err.Error()
	}
	return "", err.Error()
}
