package daemon

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/shoal-project/shoal/daemon/admin"
	"github.com/shoal-project/shoal/daemon/reload"
)

// maxSecrets is how many cluster secrets are valid at once: an old and a new one.
const maxSecrets = 2

// trust is what files say of whom to believe. It is replaced as a whole when one
// of them changes.
type trust struct {
	secrets [][]byte
	members map[string]bool // by peer ID; nil is all
	tokens  []admin.Token
}

// openTrust reads the files for the first time, when mistakes in them are errors.
func (d *Daemon) openTrust() error {
	t, err := d.cfg.readTrust()
	if err != nil {
		return err
	}
	d.trust.Store(t)
	return nil
}

func (d *Daemon) secrets() [][]byte { return d.trust.Load().secrets }

func (d *Daemon) allowed(id string) bool {
	members := d.trust.Load().members
	return members == nil || members[id]
}

func (d *Daemon) tokens() []admin.Token { return d.trust.Load().tokens }

// keepTrust reads the files again when they change, until ctx ends. Mistakes
// leave everything as it was, and are logged.
func (d *Daemon) keepTrust(ctx context.Context) error {
	var files []string
	for _, f := range append([]string{d.cfg.Gossip.SecretFile, d.cfg.Gossip.AllowFile}, tokenFiles(d.cfg.Admin)...) {
		if f != "" {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		<-ctx.Done()
		return nil
	}
	return reload.Watch(ctx, d.log, func() {
		if err := d.changeTrust(); err != nil {
			d.log.Error("a file of secrets or members has changed and is no good: what it said before still holds", "error", err)
		}
	}, files...)
}

func tokenFiles(a AdminConfig) []string {
	var files []string
	for _, t := range a.Tokens {
		files = append(files, t.File)
	}
	return files
}

// changeTrust takes in what the files say now.
func (d *Daemon) changeTrust() error {
	t, err := d.cfg.readTrust()
	if err != nil {
		return err
	}
	if t.members != nil && !t.members[d.self.ID] {
		return fmt.Errorf("gossip.allowFile: %s does not list this node itself, %s", d.cfg.Gossip.AllowFile, d.self.ID)
	}
	before := d.trust.Swap(t)
	if !slices.EqualFunc(before.secrets, t.secrets, bytes.Equal) {
		if err := d.gossip.SetSecrets(t.secrets); err != nil {
			return err
		}
		d.log.Info("cluster secret changed", "accepted", len(t.secrets))
		for _, b := range d.veil.Held(d.cache.Blobs()...) { // under the names that go with it
			d.client.Hold(b)
		}
	}
	d.gossip.Recheck()
	return nil
}

// readTrust reads the files.
func (c Config) readTrust() (*trust, error) {
	secrets, err := c.Gossip.Secrets()
	if err != nil {
		return nil, err
	}
	members, err := c.Gossip.allowed()
	if err != nil {
		return nil, err
	}
	tokens, err := c.Admin.tokens()
	if err != nil {
		return nil, err
	}
	return &trust{secrets: secrets, members: members, tokens: tokens}, nil
}

// Secrets reads the cluster secrets, the one in use first: the lines of
// SecretFile without the white space around them, or nil if there is no
// SecretFile.
func (g GossipConfig) Secrets() ([][]byte, error) {
	if g.SecretFile == "" {
		return nil, nil
	}
	data, err := readSecret("gossip.secretFile", g.SecretFile)
	if err != nil {
		return nil, err
	}
	var secrets [][]byte
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		if len(line) < MinSecret {
			return nil, fmt.Errorf("gossip.secretFile: the secret in %s has %d bytes and needs at least %d; make one with: head -c 32 /dev/urandom | base64 > %s, and copy it to all members", g.SecretFile, len(line), MinSecret, g.SecretFile)
		}
		secrets = append(secrets, line)
	}
	if len(secrets) > maxSecrets {
		return nil, fmt.Errorf("gossip.secretFile: %s has %d lines; one is the secret, and a second one is accepted while it is changed", g.SecretFile, len(secrets))
	}
	return secrets, nil
}

// allowed reads AllowFile; nil is everybody.
func (g GossipConfig) allowed() (map[string]bool, error) {
	if g.AllowFile == "" {
		return nil, nil
	}
	data, err := os.ReadFile(g.AllowFile)
	if err != nil {
		return nil, fmt.Errorf("gossip.allowFile: %w", err)
	}
	members := make(map[string]bool)
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if strings.ContainsAny(line, " \t") {
			return nil, fmt.Errorf("gossip.allowFile: %s has the line %q; write one peer ID a line, as `shoal status` shows it, and what else there is to say after a #", g.AllowFile, line)
		}
		members[line] = true
	}
	return members, nil
}

// tokens reads the tokens.
func (a AdminConfig) tokens() ([]admin.Token, error) {
	var tokens []admin.Token
	for _, t := range a.Tokens {
		secret, err := readSecret("admin.tokens", t.File)
		if err != nil {
			return nil, err
		}
		if len(secret) < MinSecret {
			return nil, fmt.Errorf("admin.tokens: the token in %s has %d bytes and needs at least %d; make one with: head -c 32 /dev/urandom | base64 > %s", t.File, len(secret), MinSecret, t.File)
		}
		tokens = append(tokens, admin.NewToken(t.Name, admin.Role(t.Role), string(secret)))
	}
	return tokens, nil
}
