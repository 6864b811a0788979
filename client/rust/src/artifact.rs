//! What a compile returns.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use crate::attestation::Keyring;
use crate::error::Error;
use crate::header;
use crate::host_file::HostFile;
use crate::v1::{ArtifactHeader, Origin};

/// An engine's native code for one module.
pub struct Artifact {
    header: ArtifactHeader,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    File(HostFile),
}

impl fmt::Debug for Artifact {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = out.debug_struct("Artifact");
        shown.field("engine", &self.engine()).field("sha256", &self.sha256());
        shown.field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Artifact {
    /// The id of the engine that made it, such as `wasmtime-50.0.1`.
    pub fn engine(&self) -> &str {
        self.header.engine.as_ref().map_or("", |engine| &engine.id)
    }

    /// The SHA-256 of the native code, in lowercase hex.
    pub fn sha256(&self) -> &str {
        &self.header.artifact_sha256
    }

    /// The SHA-256 of the module, in lowercase hex.
    pub fn module_sha256(&self) -> &str {
        &self.header.module_sha256
    }

    /// Where the daemon had it from, as the daemon says.
    pub fn origin(&self) -> Origin {
        self.header.origin()
    }

    /// What the artifact is, with what it was made, and from where it came.
    pub fn header(&self) -> &ArtifactHeader {
        &self.header
    }

    /// The native code. Of a file of the host store it reads the content, and compares it with the
    /// header's digest: [`Reason::ArtifactMismatch`](crate::Reason) where they differ.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>, Error> {
        let file = match &self.content {
            Content::Bytes(bytes) => return Ok(Cow::Borrowed(bytes)),
            Content::File(file) => file,
        };
        let content = fs::read(file.path()).map_err(|failure| {
            Error::refused(format!("cannot read the artifact's file: {failure}"))
        })?;
        header::check_bytes(&self.header, content.len() as u64, &header::sha256_hex(&content))?;
        Ok(Cow::Owned(content))
    }

    /// Where an engine can map the artifact; `None` where it is in memory.
    ///
    /// The path names an open file by its descriptor, so that nobody can put another one there. It
    /// is good as long as the artifact is there; what an engine has mapped stays.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.content {
            Content::Bytes(_) => None,
            Content::File(file) => Some(file.path()),
        }
    }

    /// Fail if somebody wrote to the file since it was checked.
    ///
    /// Call it once an engine has mapped [`Artifact::path`], and drop what was loaded if it fails.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        match &self.content {
            Content::File(file) if file.has_changed() => {
                Err(Error::refused("the file changed after it was opened"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn of_bytes(header: ArtifactHeader, bytes: Vec<u8>) -> Artifact {
        Artifact { header, content: Content::Bytes(bytes) }
    }

    /// Return the artifact in the file that a daemon names; `None` if it is of no use.
    pub(crate) fn of_file(header: &ArtifactHeader, keys: &Keyring) -> Option<Artifact> {
        let file = HostFile::open(header)?;
        let young = file.is_young();
        let artifact = Artifact { header: header.clone(), content: Content::File(file) };
        // Who trusts the file's owner needs no digest. Who gave keys asked for a signature.
        if keys.is_empty() {
            return Some(artifact);
        }
        let content = artifact.bytes().ok()?.into_owned();
        keys.verify(header).ok()?;
        artifact.check_unchanged().ok()?;
        Some(if young { Artifact::of_bytes(header.clone(), content) } else { artifact })
    }
}
