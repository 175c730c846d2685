package signature

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// A kind is how a signature is stored.
type kind string

const (
	// kindSimple: cosign's simple signing. The layer is a payload that names the
	// image, the signature of it is an annotation (cosign, specs/SIGNATURE_SPEC.md).
	kindSimple kind = "cosign signature"
	// kindEnvelope: cosign's attestation. The layer is a DSSE envelope.
	kindEnvelope kind = "cosign attestation"
	// kindBundle: a Sigstore bundle, of a signature or an attestation.
	kindBundle kind = "sigstore bundle"
	// kindNotation: an envelope of the Notary Project, JWS or COSE.
	kindNotation kind = "notation signature"
)

// Media types of layers, and types of artifacts.
const (
	typeSimpleLayer   = "application/vnd.dev.cosign.simplesigning.v1+json"
	typeEnvelopeLayer = "application/vnd.dsse.envelope.v1+json"
	typeCosignSig     = "application/vnd.dev.cosign.artifact.sig.v1+json"
	typeCosignAtt     = "application/vnd.dev.cosign.artifact.att.v1+json"
	typeNotation      = "application/vnd.cncf.notary.signature"
	typeBundle        = "application/vnd.dev.sigstore.bundle"

	// typeConfig is what lists call artifacts without a type of their own, such
	// as those of cosign before OCI 1.1.
	typeConfig = "application/vnd.oci.image.config.v1+json"
)

// Annotations.
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationLogEntry    = "dev.sigstore.cosign/bundle"
	annotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp"
	// What a referrer is about, without having to fetch it.
	annotationPredicate = "dev.sigstore.bundle.predicateType"
	// The same at the layers of cosign's attestations.
	annotationLayerPredicate = "predicateType"
)

// Bounds of what is looked at for one image. Who can push to a repository can
// put any number of things there that call themselves signatures.
const (
	maxSignatures  = 64
	maxLayer       = 1 << 20  // bytes, of a signature
	maxReport      = 16 << 20 // bytes, of a scan result
	maxPages       = 8        // of a list of referrers
	maxDescriptors = 4096
)

// An item is something stored beside an image that may be a signature of it.
// Nothing of it is verified.
type item struct {
	kind        kind
	mediaType   string // of the layer
	predicate   string // what it says it is about; "" if it does not say
	annotations map[string]string
	data        []byte
}

// A subject is the image whose signatures are looked for.
type subject struct {
	upstream, repository string
	digest               proto.Digest
}

func (s subject) String() string {
	return s.upstream + "/" + s.repository + "@" + s.digest.String()
}

// A search goes through what is stored beside an image.
type search struct {
	origin  *origin.Client
	subject subject
	// wants says whether an item of this kind is to be fetched. predicate is ""
	// if that is not known beforehand.
	wants func(k kind, predicate string) bool
	// maxLayer is the largest layer that is fetched, in bytes.
	maxLayer int64
	// suffix is that of cosign's tag.
	suffix string
	// visit is told of each item and says whether to go on.
	visit func(item) (more bool)
	// skipped is told what was passed over, and why.
	skipped func(what string, why error)

	looked int
	done   bool
}

// run calls visit until it has seen enough or there is no more. An error means
// that there may be more than was visited: one place has failed, though all were
// tried. What the registry has, but is no signature, is no error.
func (s *search) run(ctx context.Context) error {
	var errs []error
	for _, place := range []func(context.Context) error{s.referrers, s.tag} {
		if s.done {
			return nil
		}
		if err := place(ctx); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if s.done {
		return nil
	}
	return errors.Join(errs...)
}

// errBound ends a search that has come to a bound. It is no error of run: more
// than that is not looked at, however often it is asked.
var errBound = errors.New("more than is looked at")

// A descriptor is one of image-spec, descriptor.md.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

// blob returns what d names, if that is at most limit bytes long.
func (d *descriptor) blob(limit int64) (proto.Blob, error) {
	digest, err := proto.ParseDigest(d.Digest)
	if err != nil {
		return proto.Blob{}, err
	}
	if d.Size < 1 || d.Size > limit {
		return proto.Blob{}, fmt.Errorf("%d bytes, outside 1 to %d", d.Size, limit)
	}
	return proto.Blob{Digest: digest, Size: d.Size}, nil
}

// kindOf returns what an artifact of this type has in its layers.
func kindOf(artifactType string) (kind, bool) {
	switch {
	case artifactType == typeCosignSig:
		return kindSimple, true
	case artifactType == typeCosignAtt:
		return kindEnvelope, true
	case artifactType == typeNotation:
		return kindNotation, true
	case strings.HasPrefix(artifactType, typeBundle+".v0.") || strings.HasPrefix(artifactType, typeBundle+"+json"):
		return kindBundle, true
	}
	return "", false
}

// tag looks at what cosign's tag for the image names.
func (s *search) tag(ctx context.Context) error {
	if s.suffix == "" || !s.wants(kindSimple, "") && !s.wants(kindEnvelope, "") {
		return nil
	}
	d := s.subject.digest
	tag := d.Algorithm() + "-" + d.Hex() + s.suffix
	if _, err := origin.ParseTag(tag); err != nil {
		return nil // of a sha512: too long to be a tag, so nobody can have made it
	}
	ref := origin.Ref{Upstream: s.subject.upstream, Repository: s.subject.repository, Tag: tag, Manifest: true}
	found, err := s.origin.Resolve(ctx, ref)
	switch {
	case errors.Is(err, origin.ErrNotFound):
		return nil
	case errors.Is(err, origin.ErrTooLarge):
		s.skipped(tag, err)
		return nil
	case err != nil:
		return err
	}
	if err := s.manifest(ctx, found.Blob, "", ""); !errors.Is(err, errBound) {
		return err
	}
	return nil
}

// referrers looks at what refers to the image by the distribution
// specification ("Listing Referrers"), by API or by tag.
func (s *search) referrers(ctx context.Context) error {
	list, err := s.list(ctx)
	if err != nil {
		return err
	}
	// Those that don't say what they are come last, so that they don't use up
	// what may be looked at.
	slices.SortStableFunc(list, func(a, b descriptor) int { return untyped(a) - untyped(b) })
	var errs []error
	for _, d := range list {
		if s.done || ctx.Err() != nil {
			break
		}
		k, known := kindOf(d.ArtifactType)
		predicate := d.Annotations[annotationPredicate]
		vague := d.ArtifactType == "" || d.ArtifactType == typeConfig
		if !vague && (!known || !s.wants(k, predicate)) {
			continue
		}
		blob, err := d.blob(origin.MaxManifest)
		if err != nil {
			s.skipped("referrer "+d.Digest, err)
			continue
		}
		err = s.manifest(ctx, blob, k, predicate)
		switch {
		case errors.Is(err, errBound):
			return errors.Join(errs...)
		case err != nil:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func untyped(d descriptor) int {
	if _, known := kindOf(d.ArtifactType); known {
		return 0
	}
	return 1
}

// list returns all referrers, page by page.
func (s *search) list(ctx context.Context) ([]descriptor, error) {
	var all []descriptor
	query := ""
	for page := 0; ; page++ {
		l, err := s.origin.Referrers(ctx, s.subject.upstream, s.subject.repository, s.subject.digest, query, http.Header{})
		if err != nil {
			return nil, err
		}
		list, err := parseReferrers(l.Body)
		if err != nil {
			return nil, fmt.Errorf("referrers of %s: %w: %w", s.subject, err, origin.ErrProtocol)
		}
		all = append(all, list...)
		query = nextPage(l.Header.Values("Link"))
		if query == "" {
			return all, nil
		}
		if page+1 == maxPages || len(all) >= maxDescriptors {
			s.skipped("further referrers", errBound)
			return all, nil
		}
	}
}

// parseReferrers reads an index of referrers.
func parseReferrers(body []byte) ([]descriptor, error) {
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(body, &index); err != nil {
		return nil, fmt.Errorf("not an image index: %w", err)
	}
	return index.Manifests[:min(len(index.Manifests), maxDescriptors)], nil
}

// nextPage returns the query of the next page from Link headers (RFC 8288), or
// "" if there is none. Only the query counts: the list is asked for at the same
// place whatever the registry says.
func nextPage(links []string) string {
	for _, link := range links {
		for part := range strings.SplitSeq(link, ",") {
			target, params, _ := strings.Cut(part, ";")
			target = strings.TrimSpace(target)
			if !strings.HasPrefix(target, "<") || !strings.HasSuffix(target, ">") {
				continue
			}
			for param := range strings.SplitSeq(params, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
				if !strings.EqualFold(name, "rel") || strings.Trim(value, `"`) != "next" {
					continue
				}
				if u, err := url.Parse(target[1 : len(target)-1]); err == nil {
					return u.RawQuery
				}
			}
		}
	}
	return ""
}

// An artifact is the manifest of a signature: of an image, or of the artifact
// manifest that was in the release candidates of OCI 1.1.
type artifact struct {
	ArtifactType string            `json:"artifactType"`
	Config       descriptor        `json:"config"`
	Layers       []descriptor      `json:"layers"`
	Blobs        []descriptor      `json:"blobs"`
	Annotations  map[string]string `json:"annotations"`
}

// manifest looks at the layers of a signature's manifest. k is "" if it is not
// known of what kind they are.
func (s *search) manifest(ctx context.Context, b proto.Blob, k kind, predicate string) error {
	if s.looked >= maxSignatures {
		s.skipped(b.Digest.String(), errBound)
		return errBound
	}
	if b.Size > origin.MaxManifest {
		s.skipped(b.Digest.String(), origin.ErrTooLarge)
		return nil
	}
	data, err := s.fetch(ctx, b, true)
	if err != nil {
		return err
	}
	s.looked++
	var m artifact
	if err := json.Unmarshal(data, &m); err != nil {
		s.skipped("manifest "+b.Digest.String(), err)
		return nil
	}
	if k == "" {
		k = m.kind()
	}
	if predicate == "" {
		predicate = m.Annotations[annotationPredicate]
	}
	first := true
	for _, l := range slices.Concat(m.Layers, m.Blobs) {
		lk, ok := layerKind(l.MediaType, k)
		p := predicate
		if v := l.Annotations[annotationLayerPredicate]; v != "" && lk == kindEnvelope {
			p = v
		}
		if !ok || !s.wants(lk, p) {
			continue
		}
		if !first { // the manifest and its first layer count as one
			s.looked++
		}
		first = false
		if s.looked > maxSignatures {
			s.skipped(l.Digest, errBound)
			return errBound
		}
		if err := s.layer(ctx, l, lk, p); err != nil {
			return err
		}
		if s.done {
			return nil
		}
	}
	return nil
}

func (m *artifact) kind() kind {
	for _, t := range []string{m.ArtifactType, m.Config.MediaType} {
		if k, ok := kindOf(t); ok {
			return k
		}
	}
	return ""
}

// layerKind returns of what kind a layer is in a manifest of kind k, which may
// not be known.
func layerKind(mediaType string, k kind) (kind, bool) {
	switch mediaType {
	case typeSimpleLayer:
		return kindSimple, k == "" || k == kindSimple
	case typeEnvelopeLayer:
		return kindEnvelope, k == "" || k == kindEnvelope
	}
	if lk, ok := kindOf(mediaType); ok && lk == kindBundle {
		return kindBundle, k == "" || k == kindBundle
	}
	return kindNotation, k == kindNotation
}

func (s *search) layer(ctx context.Context, l descriptor, k kind, predicate string) error {
	b, err := l.blob(s.maxLayer)
	if err != nil {
		s.skipped("layer "+l.Digest, err)
		return nil
	}
	data, err := s.fetch(ctx, b, false)
	if err != nil {
		return err
	}
	more := s.visit(item{kind: k, mediaType: l.MediaType, predicate: predicate, annotations: l.Annotations, data: data})
	s.done = s.done || !more
	return nil
}

// fetch reads a manifest or a layer. That what the registry itself has named is
// not there is not "no signature", but a registry that fails.
func (s *search) fetch(ctx context.Context, b proto.Blob, manifest bool) ([]byte, error) {
	from := proto.Origin{Upstream: s.subject.upstream, Repository: s.subject.repository, Manifest: manifest}
	buf := make(buffer, 0, b.Size)
	err := s.origin.Source(from).Fetch(ctx, b.Run(), &buf)
	if errors.Is(err, origin.ErrNotFound) {
		return nil, fmt.Errorf("%s is named as a signature of %s and is not there: %w", b.Digest, s.subject, origin.ErrProtocol)
	}
	if err != nil {
		return nil, err
	}
	h := b.Digest.NewHash()
	h.Write(buf)
	if !b.Digest.Matches(h) {
		return nil, fmt.Errorf("what %s/%s sent for %s does not have this digest: %w",
			s.subject.upstream, s.subject.repository, b.Digest, origin.ErrProtocol)
	}
	return buf, nil
}

// A buffer is an io.Writer.
type buffer []byte

func (b *buffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}
