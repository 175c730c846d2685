package peer

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"
)

// keyFile is the name of the identity key in the data directory.
const keyFile = "identity.key"

// loadIdentity returns the key in dir, an Ed25519 key as PKCS #8 in PEM form,
// and the peer ID that follows from it. It makes dir and the key if they are
// not there.
func loadIdentity(dir string, log *slog.Logger) (crypto.PrivKey, libp2ppeer.ID, error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = newKey(dir)
	}
	if err != nil {
		return nil, "", fmt.Errorf("identity key: %w", err)
	}
	warnIfReadable(path, log)
	key, err := parseKey(text)
	if err != nil {
		return nil, "", fmt.Errorf("identity key %s is damaged: %w: restore it from a backup, "+
			"or delete it and this node joins with a new identity", path, err)
	}
	id, err := libp2ppeer.IDFromPrivateKey(key)
	if err != nil {
		return nil, "", fmt.Errorf("identity key %s: %w", path, err)
	}
	return key, id, nil
}

func parseKey(text []byte) (crypto.PrivKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no PEM block of type PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	std, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, not an Ed25519 key", parsed)
	}
	key, _, err := crypto.KeyPairFromStdKey(&std)
	return key, err
}

// newKey makes a key and stores it so that a crash leaves either no file or a
// whole one.
func newKey(dir string) ([]byte, error) {
	_, std, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(std)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(dir, keyFile+".*") // made with mode 0600
	if err != nil {
		return nil, err
	}
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, keyFile))
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(tmp.Name()))
	}
	return text, nil
}

// warnIfReadable says so when others than the owner can read the key. It is
// not an error: some orchestrators mount every file of a volume that way.
func warnIfReadable(path string, log *slog.Logger) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("the identity key can be read by others, who can then pose as this node: chmod 600",
			"path", path, "mode", info.Mode().Perm().String())
	}
}
