//! Trusted keys, and what they sign.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::prelude::{Engine as _, BASE64_STANDARD};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use serde_json::{json, Value};

use crate::error::{Code, Error, Reason};
use crate::v1::{ArtifactHeader, Kind};

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
// What precedes the 32 bytes of an Ed25519 key in DER (RFC 8410).
const BEFORE_KEY: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// Trusted keys by their ids.
#[derive(Default)]
pub(crate) struct Keyring(BTreeMap<String, VerifyingKey>);

impl Keyring {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Read the public keys in files, and in the files `*.pem` of folders. Keys that are in
    /// `revoked/` do not count; it is in a folder or, where that is called `trusted`, beside it.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Keyring, Error> {
        let (mut files, mut revocations) = (Vec::new(), Vec::new());
        for path in paths {
            if !path.is_dir() {
                files.push(path.clone());
                continue;
            }
            let folder = path.canonicalize().map_err(|failure| cannot_read(path, &failure))?;
            let mut places = vec![folder.join("revoked")];
            if folder.ends_with("trusted") {
                places.push(folder.with_file_name("revoked"));
            }
            for place in places {
                append(&mut revocations, &place, "json")?;
            }
            append(&mut files, &folder, "pem")?;
        }
        let mut ring = Keyring::default();
        for file in files {
            let text = fs::read_to_string(&file).map_err(|failure| cannot_read(&file, &failure))?;
            for key in parsed(&text).map_err(|failure| cannot_read(&file, &failure))? {
                ring.0.insert(crate::header::sha256_hex(key.as_bytes()), key);
            }
        }
        for file in revocations {
            let text = fs::read(&file).map_err(|failure| cannot_read(&file, &failure))?;
            let entry: Value = serde_json::from_slice(&text).unwrap_or_default();
            match entry["key_id"].as_str().filter(|id| crate::header::is_digest(id)) {
                Some(id) => ring.0.remove(id),
                None => {
                    let what = "it does not say which key is revoked, as key_id";
                    return Err(cannot_read(&file, &what));
                }
            };
        }
        if ring.0.is_empty() {
            let what = format!("cannot read trusted keys: none counts in {paths:?}");
            return Err(Error::unusable(what));
        }
        Ok(ring)
    }

    /// Check that one of the keys signed that the header's artifact is what the header says.
    ///
    /// Others compare the header with the call, and the bytes with the header.
    pub(crate) fn verify(&self, header: &ArtifactHeader) -> Result<(), Error> {
        let envelope: Value = serde_json::from_slice(&header.attestation).unwrap_or_default();
        let signature = &envelope["signatures"][0];
        let decoded = |value: &Value| BASE64_STANDARD.decode(value.as_str()?).ok();
        let (Some(payload), Some(signer)) =
            (decoded(&envelope["payload"]), signature["keyid"].as_str())
        else {
            return Err(untrusted(
                "unsigned",
                "",
                "the artifact has no attestation that can be read",
            ));
        };
        let Some(key) = self.0.get(signer) else {
            let what = "the attestation is signed by a key that is not trusted";
            return Err(untrusted("stranger", signer, what));
        };
        // The bytes that DSSE signs: type and payload with their lengths. The type is always ours.
        let lengths = (PAYLOAD_TYPE.len(), payload.len());
        let mut signed = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", lengths.0, lengths.1).into_bytes();
        signed.extend_from_slice(&payload);
        let good = decoded(&signature["sig"])
            .and_then(|bytes| Signature::from_slice(&bytes).ok())
            .is_some_and(|signature| key.verify(&signed, &signature).is_ok());
        if !good {
            let what = "the attestation's signature is not by the key that it names";
            return Err(untrusted("mismatch", signer, what));
        }
        // What docs/how-to/verify.md says of an artifact, without the fields that bind nothing.
        let said: Value = serde_json::from_slice(&payload).unwrap_or_default();
        let engine = header.engine.clone().unwrap_or_default();
        let kind = match header.kind() {
            Kind::CoreModule => "core",
            Kind::Component => "component",
            Kind::Unspecified => "",
        };
        let made = "predicate.buildDefinition";
        let given = "predicate.buildDefinition.externalParameters";
        let compiled = json!({
            "name": engine.name,
            "version": engine.version,
            "coreVersion": engine.core_version,
            "compiler": engine.compiler,
        });
        for (path, wanted) in [
            ("_type".to_owned(), json!("https://in-toto.io/Statement/v1")),
            ("predicateType".to_owned(), json!("https://slsa.dev/provenance/v1")),
            ("subject.digest.sha256".to_owned(), json!(header.artifact_sha256)),
            (format!("{made}.buildType"), json!("urn:wasmkiln:compile:v1")),
            (format!("{made}.resolvedDependencies.digest.sha256"), json!(header.module_sha256)),
            (format!("{given}.engine"), compiled),
            (format!("{given}.fingerprint"), json!(header.fingerprint)),
            (format!("{given}.kind"), json!(kind)),
            (format!("{given}.target"), json!(header.target)),
            (format!("{given}.cpu"), json!(header.cpu)),
            (format!("{given}.settings"), json!(header.settings)),
            (format!("{given}.changedSettings"), json!(header.changed_settings)),
        ] {
            if at(&said, &path) != Some(&wanted)
                && !(is_empty(&wanted) && at(&said, &path).is_none())
            {
                let what = format!("the attestation is about another {path}");
                return Err(untrusted("mismatch", signer, &what));
            }
        }
        Ok(())
    }
}

/// Return what a path leads to: by the keys of objects, and by lists of one element. An object
/// without keys is as one that is not there.
fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = value;
    for key in path.split('.') {
        value = value.get(key)?;
        if let Some([only]) = value.as_array().map(Vec::as_slice) {
            value = only;
        }
    }
    Some(value).filter(|found| !is_empty(found))
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn untrusted(cause: &str, key_id: &str, what: &str) -> Error {
    if key_id.is_empty() {
        let error = Error::new(Reason::AttestationInvalid, Code::DataLoss, what);
        return error.with("cause", cause);
    }
    let shown: String = key_id.chars().take(64).collect();
    Error::new(Reason::AttestationInvalid, Code::DataLoss, format!("{what}: {shown:?}"))
        .with("cause", cause)
        .with("key_id", shown)
}

/// Return the keys of a PEM text. The error does not quote it: it may be a private key, pasted by
/// mistake.
fn parsed(text: &str) -> Result<Vec<VerifyingKey>, &'static str> {
    const NO_KEY: &str = "not an Ed25519 public key: expected PEM";
    let mut keys = Vec::new();
    for block in text.split(BEGIN).skip(1) {
        let (body, _) = block.split_once(END).ok_or(NO_KEY)?;
        let body: String = body.split_whitespace().collect();
        let der = BASE64_STANDARD.decode(body).map_err(|_| NO_KEY)?;
        let bytes = der.strip_prefix(BEFORE_KEY.as_slice()).ok_or(NO_KEY)?;
        let bytes = bytes.try_into().map_err(|_| NO_KEY)?;
        keys.push(VerifyingKey::from_bytes(bytes).map_err(|_| NO_KEY)?);
    }
    if keys.is_empty() {
        return Err(NO_KEY);
    }
    Ok(keys)
}

/// Append the files of a folder with this extension; none if there is no such folder.
fn append(files: &mut Vec<PathBuf>, folder: &Path, extension: &str) -> Result<(), Error> {
    let entries = match fs::read_dir(folder) {
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|failure| cannot_read(folder, &failure))?,
    };
    for entry in entries {
        let path = entry.map_err(|failure| cannot_read(folder, &failure))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    Ok(())
}

fn cannot_read(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::unusable(format!("cannot read a trusted key from {path:?}: {why}"))
}
