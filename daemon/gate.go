package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/shoal-project/shoal/daemon/audit"
	"github.com/shoal-project/shoal/daemon/blocklist"
	"github.com/shoal-project/shoal/daemon/jobs"
	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/daemon/policy/rules"
	"github.com/shoal-project/shoal/daemon/policy/signature"
	"github.com/shoal-project/shoal/proto"
)

// openPolicy opens what decides who may have what, and the log of it.
func (d *Daemon) openPolicy() error {
	if err := d.openAudit(); err != nil {
		return err
	}
	if err := d.openBlocklist(); err != nil {
		return err
	}
	p := d.cfg.Policy
	set, err := rules.Compile(p.rules())
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	cfg := policy.Config{
		Origin: d.origin, Index: d.cache.Index(), Tags: d.tags, Auth: d.origin.Auth, Upstreams: d.upstreams(),
		GrantTTL: func(upstream string) time.Duration { return d.cfg.Upstreams[upstream].GrantTTL },
		Rules:    set, AuditOnly: p.Mode == "audit", Blocked: d.blocklist.Blocked,
		Read: d.read, Published: d.published, Log: d.log, Registry: d.registry,
	}
	for name, u := range d.cfg.Upstreams {
		if len(u.Allow) > 0 {
			cfg.Allow = append(cfg.Allow, policy.AllowRepositories(name, u.Allow))
		}
	}
	if len(p.Signatures) > 0 {
		v, err := signature.New(signature.Config{
			Origin: d.origin, Index: d.cache.Index(), Keys: p.Signatures, Gates: p.Scans, Log: d.log, Registry: d.registry,
		})
		if err != nil {
			return fmt.Errorf("policy: %w", err)
		}
		cfg.SignedBy, cfg.Required = v.SignedBy, v.Required
		if len(p.Scans) > 0 {
			cfg.Scan = scan(v)
		}
	}
	d.gate = policy.New(cfg)
	return nil
}

// scan makes of a rejected image a denied one.
func scan(v *signature.Verifier) func(context.Context, string, string, proto.Digest) error {
	return func(ctx context.Context, upstream, repository string, dg proto.Digest) error {
		err := v.Scan(ctx, upstream, repository, dg)
		if r, ok := errors.AsType[*signature.Rejected](err); ok {
			return &policy.Denial{Rule: r.Gate, Message: r.Message}
		}
		return err
	}
}

// openAudit opens the log of pulls, if there is one.
func (d *Daemon) openAudit() error {
	a := d.cfg.Audit
	if a.File == "" {
		return nil
	}
	var err error
	d.audit, err = audit.Open(audit.Config{
		File: a.File, MaxSize: a.MaxSize, KeepDays: a.KeepDays, Node: d.cfg.Name, Log: d.log, Registry: d.registry,
	})
	if err != nil {
		return fmt.Errorf("audit.file: %w", err)
	}
	d.opened(d.audit.Close)
	return nil
}

// record writes down what became of a request.
func (d *Daemon) record(r audit.Record) {
	if d.audit != nil {
		d.audit.Write(r)
	}
}

// openBlocklist reads the digests that nobody may have.
func (d *Daemon) openBlocklist() error {
	var err error
	d.blocklist, err = blocklist.New(blocklist.Config{
		Dir: filepath.Clean(d.cfg.Data), Self: d.cfg.Name, Tell: d.gossip.Tell,
		Parts: d.manifestsOf, Resolve: d.resolve, Log: d.log,
	})
	return err
}

// manifestsOf returns the manifests that an index names, of those that are known
// to be some.
func (d *Daemon) manifestsOf(index proto.Digest) []proto.Digest {
	parts, err := d.cache.Index().Parts(index)
	if err != nil {
		d.log.Warn("parts of an index not read", "digest", index, "error", err)
	}
	var manifests []proto.Digest
	for _, part := range parts {
		from, err := d.cache.Index().LinkedFrom(part)
		if err != nil {
			d.log.Warn("links of a digest not read", "digest", part, "error", err)
		}
		for _, l := range from {
			if policy.IsManifest(l.MediaType) {
				manifests = append(manifests, part)
				break
			}
		}
	}
	return manifests
}

// resolve returns what an image is now.
func (d *Daemon) resolve(ctx context.Context, image string) (proto.Digest, error) {
	ref, err := jobs.ParseImage(image, d.cfg.Mirror.Default)
	if err != nil {
		return proto.Digest{}, err
	}
	a, err := d.tags.Resolve(ctx, ref)
	return a.Blob.Digest, err
}

// read returns a small blob, from here or from where it is to be had.
func (d *Daemon) read(ctx context.Context, from proto.Origin, b proto.Blob) ([]byte, error) {
	if b.Size > origin.MaxManifest {
		return nil, fmt.Errorf("%s: %w: %d bytes", b.Digest, origin.ErrTooLarge, b.Size)
	}
	r, err := d.puller.Open(ctx, b, from)
	if err != nil {
		return nil, err
	}
	defer r.Close() // nothing was written
	data := make([]byte, b.Size)
	_, err = io.ReadFull(r, data)
	return data, err
}
