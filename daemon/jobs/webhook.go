package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/daemon/policy"
	"github.com/shoal-project/shoal/proto"
)

// maxEvents bounds how many events one notification may have.
const maxEvents = 1000

// An Event says that a registry has been pushed an image.
type Event struct {
	// Registry is the host that the registry goes by in its own notification,
	// with a port if it has one there. It may be empty.
	Registry   string
	Repository string
	// Tag that names the image now; empty if it was pushed by its digest.
	Tag string
	// Digest of its manifest; may be zero.
	Digest proto.Digest
}

// A Rule says what to bring where after a push.
type Rule struct {
	// Registry is a pattern of path.Match for the host that the registry goes
	// by. Empty: any.
	Registry string
	// Repository is a pattern as those of policy.AllowRepositories: "team/app",
	// "team/*", "team/**". Empty: any.
	Repository string
	// Tag is a pattern of path.Match. Empty: any.
	Tag string
	// Upstream is what this fleet calls the registry. Empty: as it calls itself.
	Upstream string
	// Platforms, AllPlatforms and Nodes are those of the Spec.
	Platforms    []string
	AllPlatforms bool
	Nodes        string
}

// Validate returns what is wrong with the rule.
func (r Rule) Validate() error {
	for _, p := range []struct{ key, pattern string }{{"registry", r.Registry}, {"repository", r.Repository}, {"tag", r.Tag}} {
		if _, err := path.Match(p.pattern, ""); err != nil {
			return fmt.Errorf("%s: %q is not a pattern; write a name, or one such as team/* or v*", p.key, p.pattern)
		}
	}
	if r.Upstream != "" && !hostGrammar.MatchString(r.Upstream) {
		return fmt.Errorf("upstream: %q is not a registry; write a key of upstreams", r.Upstream)
	}
	return (&Spec{Images: []string{"image"}, Platforms: r.Platforms, AllPlatforms: r.AllPlatforms, Nodes: r.Nodes}).Validate("registry.example")
}

// matches reports whether the rule is about e.
func (r Rule) matches(e Event) bool {
	fits := func(pattern, s string) bool {
		ok, err := path.Match(pattern, s)
		return pattern == "" || ok && err == nil
	}
	return fits(r.Registry, e.Registry) && fits(r.Tag, e.Tag) &&
		(r.Repository == "" || policy.MatchRepository(r.Repository, e.Repository))
}

// Match returns what the rules say is to be done after events, each image once
// for each set of nodes. Every rule that matches counts. An event without a tag
// matches none: it is one of the images of an index that is pushed next.
func Match(rules []Rule, events []Event) []Spec {
	var specs []Spec
	for _, r := range rules {
		s := Spec{Platforms: r.Platforms, AllPlatforms: r.AllPlatforms, Nodes: r.Nodes}
		for _, e := range events {
			if e.Tag == "" || !r.matches(e) {
				continue
			}
			host := r.Upstream
			if host == "" {
				host = strings.ToLower(e.Registry)
			}
			if host == "" {
				continue // nobody knows which registry that is
			}
			s.add(host + "/" + e.Repository + ":" + e.Tag)
		}
		if len(s.Images) == 0 {
			continue
		}
		same := slices.IndexFunc(specs, func(have Spec) bool {
			have.Images = s.Images
			return reflect.DeepEqual(have, s)
		})
		if same < 0 {
			specs = append(specs, s)
			continue
		}
		for _, image := range s.Images {
			specs[same].add(image)
		}
	}
	return specs
}

func (s *Spec) add(image string) {
	if !slices.Contains(s.Images, image) {
		s.Images = append(s.Images, image)
	}
}

// newEvent returns the event if its parts are what they should be.
func newEvent(registry, repository, tag, digest string) (Event, error) {
	e := Event{Registry: strings.ToLower(registry)}
	if e.Registry != "" && !hostGrammar.MatchString(e.Registry) {
		return Event{}, fmt.Errorf("%.300q is not a registry", registry)
	}
	var err error
	if e.Repository, err = origin.ParseRepository(repository); err != nil {
		return Event{}, err
	}
	if tag != "" {
		if e.Tag, err = origin.ParseTag(tag); err != nil {
			return Event{}, err
		}
	}
	if digest != "" {
		if e.Digest, err = proto.ParseDigest(digest); err != nil {
			return Event{}, err
		}
	}
	return e, nil
}

// ParseDistribution reads a notification of a distribution registry (its
// documentation, "Work with notifications", "Envelope") and returns the pushes
// of images in it. Other events are left out. One that cannot be read is an
// error and makes none of them count.
func ParseDistribution(body []byte) ([]Event, error) {
	var envelope struct {
		Events []struct {
			Action string `json:"action"`
			Target struct {
				MediaType  string `json:"mediaType"`
				Digest     string `json:"digest"`
				Repository string `json:"repository"`
				Tag        string `json:"tag"`
			} `json:"target"`
			Request struct {
				Host string `json:"host"`
			} `json:"request"`
		} `json:"events"`
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		return nil, fmt.Errorf("notification of a registry: %w", err)
	}
	if envelope.Events == nil {
		return nil, errors.New("notification of a registry: it has no events")
	}
	if len(envelope.Events) > maxEvents {
		return nil, fmt.Errorf("notification of a registry: %d events, at most %d are read", len(envelope.Events), maxEvents)
	}
	var events []Event
	for i, e := range envelope.Events {
		if e.Action != "push" || !policy.IsManifest(e.Target.MediaType) {
			continue
		}
		event, err := newEvent(e.Request.Host, e.Target.Repository, e.Target.Tag, e.Target.Digest)
		if err != nil {
			return nil, fmt.Errorf("notification of a registry: event %d: %w", i, err)
		}
		events = append(events, event)
	}
	return events, nil
}

// harborData is what both of Harbor's formats have of an event.
type harborData struct {
	Resources []struct {
		Digest      string `json:"digest"`
		Tag         string `json:"tag"`
		ResourceURL string `json:"resource_url"`
	} `json:"resources"`
	Repository struct {
		Name         string `json:"name"`
		Namespace    string `json:"namespace"`
		RepoFullName string `json:"repo_full_name"`
	} `json:"repository"`
}

// ParseHarbor reads a webhook of Harbor in either of its formats (its
// documentation, "Configure Webhook Notifications": Default and CloudEvents)
// and returns the pushes of images in it. Other events are no error and give
// none.
func ParseHarbor(body []byte) ([]Event, error) {
	var hook struct {
		Type string     `json:"type"`
		Old  harborData `json:"event_data"`
		New  harborData `json:"data"` // CloudEvents
	}
	if err := json.Unmarshal(body, &hook); err != nil {
		return nil, fmt.Errorf("webhook of Harbor: %w", err)
	}
	data := hook.Old
	switch hook.Type {
	case "":
		return nil, errors.New("webhook of Harbor: it has no type")
	case "PUSH_ARTIFACT", "pushImage": // the second before Harbor 2.0
	case "harbor.artifact.pushed":
		data = hook.New
	default:
		return nil, nil
	}
	if len(data.Resources) > maxEvents {
		return nil, fmt.Errorf("webhook of Harbor: %d resources, at most %d are read", len(data.Resources), maxEvents)
	}
	repository := data.Repository.RepoFullName
	if repository == "" {
		repository = path.Join(data.Repository.Namespace, data.Repository.Name)
	}
	var events []Event
	for i, r := range data.Resources {
		tag := r.Tag
		if strings.HasPrefix(tag, "sha256:") || strings.HasPrefix(tag, "sha512:") {
			tag = "" // pushed by digest, which Harbor then gives for the tag
		}
		host, _, _ := strings.Cut(r.ResourceURL, "/")
		event, err := newEvent(host, repository, tag, r.Digest)
		if err != nil {
			return nil, fmt.Errorf("webhook of Harbor: resource %d: %w", i, err)
		}
		events = append(events, event)
	}
	return events, nil
}
