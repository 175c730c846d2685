package registry

import (
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/shoal-project/shoal/proto"
)

// signed returns an address at the object storage that serves path.
func (r *Registry) signed(path string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	q := url.Values{"signature": {r.signature(path)}}
	return "http://" + r.storageAddr() + path + "?" + q.Encode()
}

// storageAddr starts the object storage if need be and returns its address.
// r.mu is held.
func (r *Registry) storageAddr() string {
	if r.storage == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err) // no loopback: no test can run
		}
		r.storage = &http.Server{Addr: l.Addr().String(), Handler: http.HandlerFunc(r.serveStorage)}
		r.serving.Go(func() { _ = r.storage.Serve(l) })
	}
	return r.storage.Addr
}

// signature returns what serveStorage wants to see. r.mu is held.
func (r *Registry) signature(path string) string {
	return proto.DigestOf(fmt.Appendf(nil, "%s %d %s", r.key, r.epoch, path)).Hex()
}

// ExpireRedirects makes all redirects so far lead to a 403.
func (r *Registry) ExpireRedirects() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
}

// serveStorage is the object storage that redirects lead to.
func (r *Registry) serveStorage(w http.ResponseWriter, req *http.Request) {
	t := parsePath(req.URL.Path)
	r.mu.Lock()
	f := r.faults
	r.counts.Storage++
	good := req.URL.Query().Get("signature") == r.signature(req.URL.Path)
	leaked := req.Header.Get("Authorization") != ""
	if leaked {
		r.counts.Leaks++
	}
	r.mu.Unlock()
	r.refuse(f)
	switch {
	case leaked:
		http.Error(w, "Only one auth mechanism allowed", http.StatusBadRequest) // as S3 has it
	case !good:
		http.Error(w, "Request has expired", http.StatusForbidden)
	default:
		r.sendBlob(r.inside, w, req, t, f)
	}
}
