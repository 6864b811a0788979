package wasmkiln

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// ParseKeys reads Ed25519 public keys: PEM, one or several, or a single key of 32 bytes in hex or
// base64, as `wasmkilnd keys show` prints it.
func ParseKeys(text string) ([]ed25519.PublicKey, error) {
	text = strings.TrimSpace(text)
	if raw, err := hex.DecodeString(text); err == nil && len(raw) == ed25519.PublicKeySize {
		return []ed25519.PublicKey{raw}, nil
	}
	if raw, err := base64.StdEncoding.DecodeString(text); err == nil && len(raw) == ed25519.PublicKeySize {
		return []ed25519.PublicKey{raw}, nil
	}
	var keys []ed25519.PublicKey
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		key, ok := parsed.(ed25519.PublicKey)
		if block.Type != "PUBLIC KEY" || err != nil || !ok {
			return nil, errNoKey()
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errNoKey()
	}
	return keys, nil
}

// ReadKeys reads the public keys in files, and in the files *.pem of folders.
func ReadKeys(paths ...string) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			if files, err = filepath.Glob(filepath.Join(path, "*.pem")); err != nil {
				return nil, err
			}
			sort.Strings(files)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			found, err := ParseKeys(string(text))
			if err != nil {
				return nil, fmt.Errorf("cannot read %s: %w", file, err)
			}
			keys = append(keys, found...)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("cannot read trusted keys: there is none in %s", strings.Join(paths, ", "))
	}
	return keys, nil
}

// errNoKey does not quote the text: it may be a private key, pasted by mistake.
func errNoKey() error {
	return fmt.Errorf("not an Ed25519 public key: expected 64 hex digits, base64 of 32 bytes, or PEM")
}

// keyID is the SHA-256 of a key's 32 bytes, in lowercase hex: an envelope's keyid.
func keyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

// keyring holds trusted keys by their ids.
type keyring map[string]ed25519.PublicKey

func newKeyring(keys []ed25519.PublicKey) (keyring, error) {
	ring := keyring{}
	for _, key := range keys {
		if len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("cannot use a trusted key of %d bytes: an Ed25519 key has %d",
				len(key), ed25519.PublicKeySize)
		}
		ring[keyID(key)] = key
	}
	return ring, nil
}
