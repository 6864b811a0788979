package wasmkiln

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

const payloadType = "application/vnd.in-toto+json"

// keyring holds trusted keys by their ids.
type keyring map[string]ed25519.PublicKey

// verify returns nil if one of the keys signed that the header's artifact is what the header says.
// Somebody else compares the header with the call, and the bytes with the header.
func (k keyring) verify(header *pb.ArtifactHeader) error {
	var envelope struct {
		Payload    []byte
		Signatures []struct {
			KeyID string
			Sig   []byte
		}
	}
	if json.Unmarshal(header.GetAttestation(), &envelope) != nil || len(envelope.Signatures) == 0 {
		return untrusted("unsigned", "", "the artifact has no attestation that can be read")
	}
	signer, payload := envelope.Signatures[0].KeyID, envelope.Payload
	key, ok := k[signer]
	if !ok {
		return untrusted("stranger", signer, "the attestation is signed by a key that is not trusted")
	}
	// The bytes that DSSE signs: type and payload with their lengths. The type is always ours.
	signed := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
	if !ed25519.Verify(key, signed, envelope.Signatures[0].Sig) {
		return untrusted("mismatch", signer, "the attestation's signature is not by the key that it names")
	}
	// What docs/how-to/verify.md says of an artifact, without the fields that bind nothing.
	const made, given = "predicate.buildDefinition.", "predicate.buildDefinition.externalParameters."
	kinds := map[pb.Kind]string{pb.Kind_KIND_CORE_MODULE: "core", pb.Kind_KIND_COMPONENT: "component"}
	engine := header.GetEngine()
	var said any
	_ = json.Unmarshal(payload, &said) // of no JSON nothing is said
	for path, want := range map[string]any{
		"_type":                 "https://in-toto.io/Statement/v1",
		"predicateType":         "https://slsa.dev/provenance/v1",
		"subject.digest.sha256": header.GetArtifactSha256(),
		made + "buildType":      "urn:wasmkiln:compile:v1",
		made + "resolvedDependencies.digest.sha256": header.GetModuleSha256(),
		given + "engine": map[string]string{
			"name": engine.GetName(), "version": engine.GetVersion(),
			"coreVersion": engine.GetCoreVersion(), "compiler": engine.GetCompiler(),
		},
		given + "fingerprint":     header.GetFingerprint(),
		given + "kind":            kinds[header.GetKind()],
		given + "target":          header.GetTarget(),
		given + "cpu":             header.GetCpu(),
		given + "settings":        header.GetSettings(),
		given + "changedSettings": header.GetChangedSettings(),
	} {
		if !bytes.Equal(asJSON(at(said, path)), asJSON(want)) {
			return untrusted("mismatch", signer, "the attestation is about another "+path)
		}
	}
	return nil
}

// at returns what a path leads to: by the keys of objects, and by lists of one element. It returns
// nil for what is not there, and for an object without keys, as it is in a header.
func at(value any, path string) any {
	for _, key := range strings.Split(path, ".") {
		object, _ := value.(map[string]any)
		value = object[key]
		if list, ok := value.([]any); ok && len(list) == 1 {
			value = list[0]
		}
	}
	if object, ok := value.(map[string]any); ok && len(object) == 0 {
		return nil
	}
	return value
}

// asJSON returns a text of which there is one for each value.
func asJSON(value any) []byte {
	text, _ := json.Marshal(value) // of texts, and of what was JSON
	return text
}

// untrusted returns the error for an artifact that no trusted key signed.
func untrusted(cause, keyID, message string) *Error {
	failure := refused(ErrAttestationInvalid, "%s", message)
	failure.Metadata = map[string]string{"cause": cause}
	if keyID != "" {
		failure.Message += fmt.Sprintf(": %.64q", keyID)
		failure.Metadata["key_id"] = keyID
	}
	return failure
}

// errNoKey does not quote the text: it may be a private key, pasted by mistake.
var errNoKey = errors.New("not an Ed25519 public key: expected PEM")

// ParseKeys reads Ed25519 public keys in PEM, as `wasmkilnd keys show --pem` prints one.
func ParseKeys(text string) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		key, ok := parsed.(ed25519.PublicKey)
		if err != nil || !ok {
			return nil, errNoKey
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errNoKey
	}
	return keys, nil
}

// ReadKeys reads the public keys in files, and in the files *.pem of folders. The keys that are in
// revoked/ do not count; it is in a folder or, where that is called trusted, beside it.
func ReadKeys(paths ...string) ([]ed25519.PublicKey, error) {
	var files, revocations []string
	for _, path := range paths {
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			files = append(files, path)
			continue
		}
		folder, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		places := []string{filepath.Join(folder, "revoked")}
		if filepath.Base(folder) == "trusted" {
			places = append(places, filepath.Join(filepath.Dir(folder), "revoked"))
		}
		for _, place := range places {
			if revocations, err = appendFiles(revocations, place, ".json"); err != nil {
				return nil, err
			}
		}
		if files, err = appendFiles(files, folder, ".pem"); err != nil {
			return nil, err
		}
	}
	ring := keyring{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil { // which does not show that a name is empty
			return nil, fmt.Errorf("cannot read a trusted key from %q: %w", file, err)
		}
		keys, err := ParseKeys(string(text))
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", file, err)
		}
		for _, key := range keys {
			ring[keyID(key)] = key
		}
	}
	for _, file := range revocations {
		var entry struct {
			KeyID string `json:"key_id"`
		}
		text, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(text, &entry) != nil || !isDigest.MatchString(entry.KeyID) {
			return nil, fmt.Errorf("cannot read %s: it does not say which key is revoked, as key_id", file)
		}
		delete(ring, entry.KeyID)
	}
	if len(ring) == 0 {
		return nil, fmt.Errorf("cannot read trusted keys: none counts in %q", paths)
	}
	var counting []ed25519.PublicKey
	for _, key := range ring {
		counting = append(counting, key)
	}
	return counting, nil
}

// appendFiles appends the files of a folder whose names end so; none if there is no such folder.
func appendFiles(files []string, folder, end string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return files, nil
	}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), end) {
			files = append(files, filepath.Join(folder, entry.Name()))
		}
	}
	return files, err
}

// keyID is the SHA-256 of a key's 32 bytes, in lowercase hex: an envelope's keyid.
func keyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}
