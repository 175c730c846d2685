package jobs

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/proto"
)

// serve says order to a node's Serve, and returns what it answers until it
// closes, and its error.
func serve(t *testing.T, n *node, order string) ([]report, error) {
	t.Helper()
	near, far := net.Pipe()
	var served sync.WaitGroup
	var err error
	served.Go(func() { err = n.jobs.Serve(t.Context(), "asker", far) })
	go func() { _, _ = io.WriteString(near, order) }() // ends with the pipe
	var said []report
	for lines := bufio.NewScanner(near); lines.Scan(); {
		var r report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		said = append(said, r)
	}
	near.Close()
	served.Wait()
	return said, err
}

func TestServe(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node(t, "a", "")
	img := b.push(t, "team/app", "1", 1000)
	o := order{Job: "x", Images: []orderImage{{
		Image: "app", Upstream: upstream, Repository: "team/app", Tag: "1", Digest: img.Manifest.Digest,
	}}}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	said, err := serve(t, n, string(text)+"\n")
	if err != nil || len(said) < 2 || !said[len(said)-1].End {
		t.Fatalf("Serve = %+v, %v", said, err)
	}
	if last := said[len(said)-2]; last.Image == nil || last.Image.State != Done || last.Image.BytesDone != img.Size() {
		t.Errorf("the last progress is %+v", last)
	}
	n.whole(t, img)
}

func TestServeRefuses(t *testing.T) {
	t.Parallel()
	n := newBed(t).node(t, "a", "")
	image := func(change func(*orderImage)) string {
		i := orderImage{Image: "app", Upstream: upstream, Repository: "team/app", Tag: "1", Digest: proto.DigestOf(nil)}
		change(&i)
		text, err := json.Marshal(order{Images: []orderImage{i}})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, test := range []struct{ name, order, want string }{
		{"none", `{}`, "0 images"},
		{"no digest", image(func(i *orderImage) { i.Digest = proto.Digest{} }), "no digest"},
		{"no registry", image(func(i *orderImage) { i.Upstream = "../x" }), "no registry"},
		{"repository", image(func(i *orderImage) { i.Repository = "../x" }), "is not valid"},
		{"tag", image(func(i *orderImage) { i.Tag = "a/b" }), "is not valid"},
		{"long name", image(func(i *orderImage) { i.Image = strings.Repeat("x", 2000) }), "2000 bytes"},
		{"platform", strings.Replace(image(func(*orderImage) {}), `}]`, `}],"platforms":["*"]`, 1), "write one such as linux/amd64"},
	} {
		said, err := serve(t, n, test.order)
		if len(said) != 1 || !strings.Contains(said[0].Refused, test.want) || err == nil {
			t.Errorf("%s: Serve said %+v, %v; want a refusal with %q", test.name, said, err, test.want)
		}
	}
	if said, err := serve(t, n, "GET / HTTP/1.1\r\n"); len(said) != 0 || err == nil {
		t.Errorf("garbage: %+v, %v", said, err)
	}
}

// What a node says is not believed: not which image it is about, and not that
// it is done with those of which it said nothing.
func TestAskDistrustsTheNode(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a, liar := b.node(t, "a", ""), b.node(t, "liar", "")
	b.push(t, "team/app", "1", 1000)
	long := strings.Repeat("x", 2*maxError)
	for _, test := range []struct{ name, says, node, image string }{
		{"nothing", `{"end":true}`, "", "the node did not say how it ended"},
		{"another image", `{"index":7,"image":{"state":"done"}}` + "\n" + `{"index":-1,"image":{"state":"done"}}` + "\n" + `{"end":true}`, "", "the node did not say"},
		{"another state", `{"image":{"state":"over","image":"x"}}` + "\n" + `{"end":true}`, "", "the node did not say"},
		{"garbage", "hello", "cannot be read", ""},
		{"too long", `{"refused":"` + strings.Repeat(long, 20), "", ""},
		{"long", `{"image":{"state":"failed","error":"` + long + `"}}` + "\n" + `{"end":true}`, "", "x…"},
	} {
		liar.host.HandleJobs(func(_ context.Context, _ string, s io.ReadWriteCloser) {
			if _, err := bufio.NewReader(s).ReadBytes('\n'); err == nil {
				_, _ = io.WriteString(s, test.says+"\n")
			}
		})
		a.jobs.cfg.Patience = 1 // one try
		job := a.ended(t, a.start(t, Spec{Images: []string{"team/app:1"}, Nodes: "all"}).ID)
		s := job.Nodes[1]
		if s.State != Failed || !strings.Contains(s.Error, test.node) || !strings.Contains(s.Images[0].Error, test.image) {
			t.Errorf("%s: node = %.500v, want errors with %q and %q", test.name, s, test.node, test.image)
		}
		if s.Images[0].Image != "team/app:1" || len(s.Images[0].Error) > 2*maxError {
			t.Errorf("%s: %.300v", test.name, s.Images[0])
		}
	}
}

func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"job":"x","images":[{"image":"a","upstream":"docker.io","repository":"library/a","digest":"sha256:` + strings.Repeat("a", 64) + `"}],"platforms":["linux/amd64"]}`))
	f.Add([]byte(`{"images":[{}]}`))
	j := &Jobs{}
	f.Fuzz(func(t *testing.T, data []byte) {
		var o order
		if json.Unmarshal(data, &o) != nil {
			return
		}
		w, err := j.newWork(o)
		if err == nil && len(w.images) != len(o.Images) {
			t.Error("images were lost")
		}
	})
}
