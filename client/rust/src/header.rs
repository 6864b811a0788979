//! What a header must say, and what wasmtime says of an engine.

use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Reason};
use crate::v1::{ArtifactHeader, CompileRequest};

/// Settings that artifacts of earlier daemons do not state, and what these artifacts have.
const UNSTATED: [(&str, &str); 14] = [
    ("strategy", "cranelift"),
    ("compiler", "cranelift"),
    ("collector", "drc"),
    ("memory_init_cow", "true"),
    ("memory_reservation_for_growth", "2147483648"),
    ("debug_info", "false"),
    ("concurrency_support", "true"),
    ("wasm_branch_hinting", "false"),
    ("wasm_compact_imports", "false"),
    ("wasm_component_model_accessors", "false"),
    ("wasm_component_model_async", "true"),
    ("wasm_component_model_async_stackful", "false"),
    ("wasm_component_model_canonical_names", "false"),
    ("wasm_component_model_more_async_builtins", "false"),
];
/// What chooses an engine's fast compiler.
const FAST: [(&str, &str); 2] = [("strategy", "winch"), ("compiler", "singlepass")];
const SECTION: &[u8] = b".wasmtime.engine";

/// Fail unless a header is about what the request asked for.
///
/// A signature binds an artifact to its header, and not to the call: somebody in between could
/// answer with an artifact that counts no fuel.
pub(crate) fn check(
    request: &CompileRequest,
    digest: &str,
    header: &ArtifactHeader,
    max_artifact_bytes: u64,
) -> Result<(), Error> {
    let engine = header.engine.clone().unwrap_or_default();
    let full = format!("{}-{}", engine.name, engine.version);
    let mut asked = vec![
        ("an artifact of module".to_owned(), digest, header.module_sha256.as_str()),
        ("an engine whose id is".to_owned(), &full, &engine.id),
        ("target".to_owned(), &request.target, &header.target),
        ("cpu".to_owned(), &request.cpu, &header.cpu),
    ];
    if request.engine != engine.name {
        asked.push(("engine".to_owned(), &request.engine, &full));
    }
    for (name, value) in &request.settings {
        let unstated = UNSTATED.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let got = header.settings.get(name).map(String::as_str).or(unstated);
        asked.push((format!("setting {name}"), value, got.unwrap_or_default()));
    }
    for (what, wanted, got) in asked {
        if !wanted.is_empty() && wanted != got {
            let got: String = got.chars().take(200).collect();
            return Err(Error::refused(format!("asked for {what} {wanted:?}, got {got:?}")));
        }
    }
    // A setting that the call did not name must have the engine's default. An engine that was shown
    // compares them itself.
    let is_shown = !request.compatibility.is_empty();
    let mut is_fast = false;
    for (name, value) in &header.changed_settings {
        let is_fast_choice = FAST.contains(&(name, value));
        is_fast |= is_fast_choice;
        let is_asked = request.settings.get(name) == Some(value);
        if !(is_shown || is_asked || is_fast_choice && request.accept_fast) {
            let name: String = name.chars().take(200).collect();
            return Err(Error::refused(format!("got setting {name:?}, which was not asked for")));
        }
    }
    let resumed = (header.offset_bytes, &header.artifact_sha256);
    let wrong = if header.is_fast != is_fast {
        "the header and its settings name different compilers"
    } else if !header.content_encoding.is_empty() {
        "got an encoding that was not asked for"
    } else if header.host_file.is_some() && !request.accept_host_file {
        "got a file that was not asked for"
    } else if resumed.0 != 0 && resumed != (request.offset_bytes, &request.artifact_sha256) {
        "got the rest of another artifact"
    } else {
        ""
    };
    if !wrong.is_empty() {
        return Err(Error::refused(wrong));
    }
    let size = header.size_bytes;
    if size > max_artifact_bytes {
        let what = format!("the artifact has {size} bytes, above max_artifact_bytes");
        return Err(Error::new(Reason::ArtifactTooLarge, Code::ResourceExhausted, what)
            .with("size_bytes", size)
            .with("limit_bytes", max_artifact_bytes));
    }
    Ok(())
}

/// Fail unless an artifact has the size and the digest of its header.
pub(crate) fn check_bytes(header: &ArtifactHeader, size: u64, digest: &str) -> Result<(), Error> {
    if (size, digest) == (header.size_bytes, &header.artifact_sha256) {
        return Ok(());
    }
    let told: String = header.artifact_sha256.chars().take(64).collect();
    Err(Error::refused(format!(
        "{size} bytes with the SHA-256 {digest} came, the header says {} and {told:?}",
        header.size_bytes
    )))
}

/// Return the section in which wasmtime says for which engine it compiled something, or a section
/// as it is.
pub(crate) fn section_of(compiled: &[u8]) -> Result<&[u8], Error> {
    if compiled.starts_with(b"\0") && !compiled.starts_with(b"\0asm") {
        return Ok(compiled);
    }
    section_in(compiled).filter(|found| !found.is_empty()).ok_or_else(|| {
        Error::unusable(
            "cannot use this for for_engine: these bytes are nothing that wasmtime compiled",
        )
    })
}

/// Return the section of an ELF file of 64 bits, little-endian.
fn section_in(file: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(file.get(at..at.checked_add(bytes)?)?);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    let slice = |at: usize, size: usize| file.get(at..at.checked_add(size)?);
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry, count, names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    // Where the entry of a section stands in the table.
    let place = |index: usize| table.checked_add(index.checked_mul(entry)?);
    let content =
        |at: usize| slice(number(at.checked_add(0x18)?, 8)?, number(at.checked_add(0x20)?, 8)?);
    let names = content(place(names)?)?;
    for index in 0..count {
        let at = place(index)?;
        let name = names.get(number(at, 4)?..)?;
        if name.strip_prefix(SECTION).is_some_and(|rest| rest.first() == Some(&0)) {
            return content(at);
        }
    }
    None
}

pub(crate) fn sha256_hex(content: &[u8]) -> String {
    hex(Sha256::digest(content).as_slice())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
