package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/origin"
	"github.com/shoal-project/shoal/proto"
)

// digestOf returns the digest of a letter, and text with <a> and so on replaced
// by it.
func digestOf(letter string) string { return proto.DigestOf([]byte(letter)).String() }

func fill(text string) string {
	for _, l := range []string{"a", "b", "c", "d"} {
		text = strings.ReplaceAll(text, "<"+l+">", digestOf(l))
	}
	return text
}

func TestParseManifest(t *testing.T) {
	for _, test := range []struct {
		name, mediaType, text string
		want                  string // letter:size of each, in order
		err                   string // part of the error, empty for none
	}{
		{
			name:      "image",
			mediaType: typeOCIManifest,
			text: `{"schemaVersion":2,"config":{"mediaType":"x/y","digest":"<a>","size":7},
				"layers":[{"digest":"<c>","size":30},{"digest":"<b>","size":20}],"subject":{"digest":"<d>","size":1}}`,
			want: "a:7 c:30 b:20",
		},
		{
			name:      "docker image with parameters in its type",
			mediaType: typeDockerManifest + "; charset=utf-8",
			text:      `{"config":{"digest":"<a>","size":7},"layers":[{"digest":"<b>","size":0}]}`,
			want:      "a:7 b:0",
		},
		{
			name: "index", mediaType: typeOCIIndex,
			text: `{"manifests":[{"digest":"<a>","size":1,"mediaType":"` + typeOCIManifest + `"},{"digest":"<b>","size":2}]}`,
			want: "a:1 b:2",
		},
		{name: "list", mediaType: typeDockerList, text: `{"manifests":[{"digest":"<a>","size":1}]}`, want: "a:1"},
		{name: "artifact", mediaType: typeOCIArtifact, text: `{"blobs":[{"digest":"<a>","size":1}],"subject":{"digest":"<b>","size":1}}`, want: "a:1"},
		{
			name: "type from the body", mediaType: "application/json",
			text: `{"mediaType":"` + typeOCIManifest + `","layers":[{"digest":"<a>","size":1}]}`, want: "a:1",
		},
		{name: "another kind of document", mediaType: "application/json", text: `{"layers":[{"digest":"<a>","size":1}]}`},
		{name: "no document", mediaType: "text/plain", text: `hello`},
		{name: "no JSON", mediaType: typeOCIManifest, text: `hello`, err: "invalid character"},
		{name: "empty", mediaType: typeOCIManifest, text: ``, err: "unexpected end"},
		{
			name: "repeated", mediaType: typeOCIManifest,
			text: `{"layers":[{"digest":"<a>","size":1},{"digest":"<b>","size":2},{"digest":"<a>","size":1}]}`, want: "a:1 b:2",
		},
		{
			name: "repeated with another size", mediaType: typeOCIManifest,
			text: `{"layers":[{"digest":"<a>","size":1},{"digest":"<a>","size":2}]}`,
			want: "a:1", err: "has a size of 1 and of 2 bytes",
		},
		{
			name: "foreign layers", mediaType: typeDockerManifest,
			text: `{"layers":[{"digest":"<a>","size":1,"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
				{"digest":"<b>","size":2,"urls":["https://example.com/x"]},{"digest":"<c>","size":3},
				{"digest":"<d>","size":4,"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}]}`,
			want: "c:3",
		},
		{
			name: "one bad digest", mediaType: typeOCIManifest,
			text: `{"config":{"digest":"blake3:00","size":1},"layers":[{"digest":"../../etc","size":1},{"digest":"<b>","size":2}]}`,
			want: "b:2", err: `config[0]: digest algorithm "blake3" is not supported`,
		},
		{name: "no size", mediaType: typeOCIManifest, text: `{"layers":[{"digest":"<a>"},{"digest":"<b>","size":2}]}`, want: "b:2", err: "layers[0]: no size"},
		{name: "negative size", mediaType: typeOCIManifest, text: `{"layers":[{"digest":"<a>","size":-1}]}`, err: "size of -1 bytes"},
		{name: "huge size", mediaType: typeOCIManifest, text: `{"layers":[{"digest":"<a>","size":9223372036854775807}]}`, err: "outside 0 to"},
		{name: "size of no int", mediaType: typeOCIManifest, text: `{"layers":[{"digest":"<a>","size":1e30}]}`, err: "cannot unmarshal"},
		{
			name: "long media type", mediaType: typeOCIManifest,
			text: `{"layers":[{"digest":"<a>","size":1,"mediaType":"` + strings.Repeat("x", 300) + `"}]}`, err: "media type of 300 bytes",
		},
		{
			name: "image and index at once", mediaType: typeOCIManifest,
			text: `{"layers":[{"digest":"<a>","size":1}],"manifests":[{"digest":"<b>","size":1}]}`, err: "an image and an index at once",
		},
		{name: "too large", mediaType: typeOCIManifest, text: strings.Repeat(" ", origin.MaxManifest+1), err: "too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ds, err := parseManifest([]byte(fill(test.text)), test.mediaType)
			var got []string
			for _, d := range ds {
				for _, l := range []string{"a", "b", "c", "d"} {
					if d.Blob.Digest.String() == digestOf(l) {
						got = append(got, fmt.Sprintf("%s:%d", l, d.Blob.Size))
					}
				}
			}
			if s := strings.Join(got, " "); s != test.want {
				t.Errorf("parseManifest = %s, want %s", s, test.want)
			}
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error = %v, want %q", err, test.err)
			}
		})
	}
}

func TestParseManifestTooLargeIsThatError(t *testing.T) {
	_, err := parseManifest(make([]byte, origin.MaxManifest+1), typeOCIManifest)
	if !errors.Is(err, origin.ErrTooLarge) {
		t.Errorf("error = %v, want ErrTooLarge", err)
	}
}

func TestParseManifestComplainsBriefly(t *testing.T) {
	text := `{"layers":[` + strings.TrimSuffix(strings.Repeat(`{"digest":"x","size":1},`, 50000), ",") + `]}`
	_, err := parseManifest([]byte(text), typeOCIManifest)
	if err == nil || len(err.Error()) > 2000 {
		t.Errorf("the error of 50,000 bad layers has %d bytes", len(fmt.Sprint(err)))
	}
}

func TestIsManifest(t *testing.T) {
	for _, s := range []string{typeOCIManifest, typeOCIIndex, typeDockerList, typeDockerManifest, typeOCIArtifact,
		strings.ToUpper(typeOCIIndex), typeOCIIndex + ";charset=utf-8"} {
		if !IsManifest(s) {
			t.Errorf("IsManifest(%q) = false", s)
		}
	}
	for _, s := range []string{"", "application/json", "application/octet-stream", "application/vnd.oci.image.config.v1+json", "application/vnd.oci.empty.v1+json"} {
		if IsManifest(s) {
			t.Errorf("IsManifest(%q) = true", s)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(fill(`{"mediaType":"`+typeOCIManifest+`","config":{"digest":"<a>","size":7},"layers":[{"digest":"<c>","size":30,"urls":["x"]}]}`)), typeOCIManifest)
	f.Add([]byte(fill(`{"manifests":[{"digest":"<a>","size":1}]}`)), typeOCIIndex)
	f.Add([]byte(fill(`{"blobs":[{"digest":"<a>","size":1},{"digest":"<a>","size":2}]}`)), typeOCIArtifact)
	f.Add([]byte(`{"layers":null,"config":null}`), typeDockerManifest)
	f.Add([]byte(`[[[[[`), "")
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		ds, err := parseManifest(data, mediaType)
		if err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
		seen := make(map[proto.Digest]bool)
		for _, d := range ds {
			if err := d.Blob.Validate(); err != nil {
				t.Error(err)
			}
			if seen[d.Blob.Digest] {
				t.Errorf("%s twice", d.Blob.Digest)
			}
			seen[d.Blob.Digest] = true
			if len(d.MediaType) > maxMediaType {
				t.Errorf("media type of %d bytes", len(d.MediaType))
			}
		}
	})
}
