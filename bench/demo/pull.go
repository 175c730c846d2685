package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/bench/process"
	"github.com/shoal-project/shoal/bench/registry"
)

// pullAll pulls an image through all daemons at once and returns how long each
// took. Each of them has a bar.
func pullAll(ctx context.Context, s *screen, daemons []*process.Node, img registry.Image) ([]time.Duration, error) {
	took := make([]time.Duration, len(daemons))
	bars := s.bars(ctx, img.Size())
	g, ctx := errgroup.WithContext(ctx)
	for i, n := range daemons {
		bar := bars.add(n.Name())
		g.Go(func() error {
			start := time.Now()
			err := pull(ctx, n.Mirror, img, bar.Add)
			took[i] = time.Since(start)
			bar.done(err == nil)
			if err != nil {
				return fmt.Errorf("pull through %s: %w", n.Name(), err)
			}
			return nil
		})
	}
	err := g.Wait()
	bars.wait()
	return took, err
}

// pull pulls an image through one mirror, as a client of its own with
// connections of its own, all layers at once, and throws it away. The library
// checks every digest and size. progress is told of bytes that came, by
// several goroutines.
func pull(ctx context.Context, mirror string, img registry.Image, progress func(n int)) error {
	ref, err := name.NewTag(mirror+"/"+upstream+"/"+img.Repository+":"+img.Tag, name.Insecure)
	if err != nil {
		return err
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // loopback only, whatever the environment says
	transport.MaxIdleConnsPerHost = len(img.Layers)
	defer transport.CloseIdleConnections()
	got, err := remote.Image(ref, remote.WithContext(ctx), remote.WithTransport(transport), remote.WithJobs(len(img.Layers)))
	if err != nil {
		return err
	}
	digest, err := got.Digest()
	if err != nil {
		return err
	}
	if want := img.Manifest.Digest.String(); digest.String() != want {
		return fmt.Errorf("%s is %s, and %s was pushed", ref, digest, want)
	}
	progress(int(img.Manifest.Size))
	config, err := got.RawConfigFile()
	if err != nil {
		return err
	}
	progress(len(config))
	layers, err := got.Layers()
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, l := range layers {
		g.Go(func() error { return pullLayer(l, progress) })
	}
	return g.Wait()
}

func pullLayer(l v1.Layer, progress func(n int)) error {
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		progress(n)
		if err == io.EOF { // not before the digest was right
			return nil
		}
		if err != nil {
			return err
		}
	}
}
