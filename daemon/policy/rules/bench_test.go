package rules

import "testing"

// BenchmarkJudge is what each request of a node with an ordinary policy pays.
func BenchmarkJudge(b *testing.B) {
	s := compile(b, Config{
		Default: "deny", Registries: []string{"docker.io", "ghcr.io"}, NoLatest: true,
		Rules: []Rule{
			{Name: "signed", If: `glob(registry + "/" + repository, "docker.io/team/**") && !("release" in signedBy)`, Do: "deny"},
			{Name: "office", If: `!inNetwork(client.address, "10.0.0.0/8")`, Do: "deny"},
			{Name: "known", If: `registry in ["docker.io", "ghcr.io"]`, Do: "allow"},
		},
	})
	f := request("ghcr.io/team/app:v1")
	b.ReportAllocs()
	for b.Loop() {
		if v, err := s.Judge(b.Context(), f); err != nil || !v.Allow {
			b.Fatal(v, err)
		}
	}
}
