package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/blocklist"
	"github.com/shoal-project/shoal/proto"
)

// TestBlocklist goes through the client, the server and a real list.
func TestBlocklist(t *testing.T) {
	t.Parallel()
	index, image := proto.DigestOf([]byte("index")), proto.DigestOf([]byte("image"))
	l, err := blocklist.New(blocklist.Config{
		Dir: t.TempDir(), Self: "n",
		Parts: func(d proto.Digest) []proto.Digest {
			if d == index {
				return []proto.Digest{image}
			}
			return nil
		},
		Resolve: func(_ context.Context, name string) (proto.Digest, error) {
			if name == "ghcr.io/team/app:v1" {
				return index, nil
			}
			return proto.Digest{}, errors.New("no such image")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := serve(t, admin.Config{Blocklist: admin.Blocklist{List: l.List, Block: l.BlockImage, Unblock: l.UnblockImage}})
	c := admin.NewClient(strings.TrimPrefix(srv.URL, "http://"))
	check := func(what string, got []blocklist.Entry, err error, want ...proto.Digest) {
		t.Helper()
		var ds []proto.Digest
		for _, e := range got {
			ds = append(ds, e.Digest)
		}
		if err != nil || fmt.Sprint(ds) != fmt.Sprint(want) {
			t.Errorf("%s: %v, %v, want %v", what, ds, err, want)
		}
	}
	got, err := c.Blocked(t.Context())
	check("at the start", got, err)
	if got == nil {
		t.Error("an empty list is null")
	}
	got, err = c.Block(t.Context(), "ghcr.io/team/app:v1", "bad & <worse>")
	check("block", got, err, index, image)
	got, err = c.Blocked(t.Context())
	if len(got) != 2 || err != nil || got[0].Reason != "bad & <worse>" || got[0].By != "n" || got[0].At.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = c.Unblock(t.Context(), "ghcr.io/team/app@"+index.String())
	if len(got) != 2 || got[0].Blocked {
		t.Errorf("%+v, %v", got, err)
	}

	for _, tt := range []struct {
		image  string
		call   func() error
		status int
	}{
		{"bad digest", func() error { _, err := c.Block(t.Context(), "sha256:aa", ""); return err }, http.StatusBadRequest},
		{"nothing", func() error { _, err := c.Block(t.Context(), "", ""); return err }, http.StatusBadRequest},
		{"unblock nothing", func() error { _, err := c.Unblock(t.Context(), ""); return err }, http.StatusBadRequest},
		{"not blocked", func() error { _, err := c.Unblock(t.Context(), index.String()); return err }, http.StatusNotFound},
		{"no image", func() error { _, err := c.Block(t.Context(), "a/b:c", ""); return err }, http.StatusInternalServerError},
	} {
		var r *admin.Refusal
		if err := tt.call(); !errors.As(err, &r) || r.Status != tt.status {
			t.Errorf("%s: %v, want status %d", tt.image, err, tt.status)
		}
	}

	// A page of another site cannot block or free anything.
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		req, err := http.NewRequest(method, srv.URL+"/v1/blocklist?image="+index.String(), strings.NewReader(`{"image":"`+index.String()+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "text/plain")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("%s: %s", method, resp.Status)
		}
	}
	if len(l.List()) != 0 {
		t.Errorf("%v", l.List())
	}
}
