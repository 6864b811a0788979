package wasmkiln

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

// What docs/reference/attestation.md calls the format of an attestation.
const (
	payloadType   = "application/vnd.in-toto+json"
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "urn:wasmkiln:compile:v1"
)

const (
	causeUnsigned = "unsigned"
	causeStranger = "stranger"
	causeMismatch = "mismatch"
)

type envelope struct {
	Payload     string `json:"payload"`
	PayloadType string `json:"payloadType"`
	Signatures  []struct {
		KeyID string `json:"keyid"`
		Sig   string `json:"sig"`
	} `json:"signatures"`
}

type digested struct {
	Digest struct {
		SHA256 string `json:"sha256"`
	} `json:"digest"`
}

type statement struct {
	Type          string     `json:"_type"`
	PredicateType string     `json:"predicateType"`
	Subject       []digested `json:"subject"`
	Predicate     struct {
		BuildDefinition struct {
			BuildType            string     `json:"buildType"`
			ResolvedDependencies []digested `json:"resolvedDependencies"`
			ExternalParameters   struct {
				ChangedSettings map[string]string `json:"changedSettings"`
				CPU             string            `json:"cpu"`
				Engine          map[string]string `json:"engine"`
				Fingerprint     string            `json:"fingerprint"`
				Kind            string            `json:"kind"`
				Settings        map[string]string `json:"settings"`
				Target          string            `json:"target"`
			} `json:"externalParameters"`
		} `json:"buildDefinition"`
	} `json:"predicate"`
}

// verify returns nil if one of the keys signed that the header's artifact is what the header says.
// Somebody else compares the header with the call, and the bytes with the header.
func (k keyring) verify(header *pb.ArtifactHeader) error {
	if len(header.GetAttestation()) == 0 {
		return untrusted(causeUnsigned, "", "the artifact has no attestation")
	}
	payload, signer, err := k.open(header.GetAttestation())
	if err != nil {
		return err
	}
	var said statement
	if err := json.Unmarshal(payload, &said); err != nil {
		return untrusted(causeMismatch, signer, "the attestation's statement is not about an artifact")
	}
	if field := said.differs(header); field != "" {
		return untrusted(causeMismatch, signer, "the attestation is about another "+field)
	}
	return nil
}

// open returns the payload of an envelope, once a trusted key's signature on it was verified.
func (k keyring) open(text []byte) (payload []byte, signer string, err error) {
	const malformed = "cannot read the attestation: it is not a DSSE envelope as wasmkiln writes it"
	var sealed envelope
	if json.Unmarshal(text, &sealed) != nil || len(sealed.Signatures) != 1 {
		return nil, "", untrusted(causeUnsigned, "", malformed)
	}
	signer = sealed.Signatures[0].KeyID
	key, ok := k[signer]
	if !ok {
		return nil, "", untrusted(causeStranger, signer, fmt.Sprintf(
			"the attestation is signed by a key that is not trusted: %.64q", signer))
	}
	payload, err = base64.StdEncoding.Strict().DecodeString(sealed.Payload)
	if err != nil {
		return nil, "", untrusted(causeUnsigned, signer, malformed)
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(sealed.Signatures[0].Sig)
	if err != nil {
		return nil, "", untrusted(causeUnsigned, signer, malformed)
	}
	if sealed.PayloadType != payloadType {
		return nil, "", untrusted(causeMismatch, signer, "the attestation's payload is of another type")
	}
	signed := fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload))
	if !ed25519.Verify(key, append(signed, payload...), signature) {
		return nil, "", untrusted(causeMismatch, signer,
			"the attestation's signature is not by the key that it names")
	}
	return payload, signer, nil
}

// differs names what the statement says otherwise than the header, "" if nothing.
func (s *statement) differs(header *pb.ArtifactHeader) string {
	definition := &s.Predicate.BuildDefinition
	given, engine := &definition.ExternalParameters, header.GetEngine()
	switch {
	case s.Type != statementType, s.PredicateType != predicateType, definition.BuildType != buildType:
		return "kind of thing"
	case len(s.Subject) != 1 || s.Subject[0].Digest.SHA256 != header.GetArtifactSha256():
		return "artifact"
	case len(definition.ResolvedDependencies) != 1 ||
		definition.ResolvedDependencies[0].Digest.SHA256 != header.GetModuleSha256():
		return "module"
	case given.Fingerprint != header.GetFingerprint():
		return "fingerprint"
	case given.Kind != kindName(header.GetKind()):
		return "kind"
	case !maps.Equal(given.Engine, map[string]string{
		"name": engine.GetName(), "version": engine.GetVersion(),
		"coreVersion": engine.GetCoreVersion(), "compiler": engine.GetCompiler(),
	}):
		return "engine"
	case given.Target != header.GetTarget():
		return "target"
	case given.CPU != header.GetCpu():
		return "cpu"
	case !maps.Equal(given.Settings, header.GetSettings()):
		return "settings"
	case !maps.Equal(given.ChangedSettings, header.GetChangedSettings()):
		return "changed settings"
	}
	return ""
}

func kindName(kind pb.Kind) string {
	switch kind {
	case pb.Kind_KIND_CORE_MODULE:
		return "core"
	case pb.Kind_KIND_COMPONENT:
		return "component"
	}
	return ""
}
