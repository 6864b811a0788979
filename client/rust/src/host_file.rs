//! Files of the host store, which a daemon on this machine names.
//!
//! `docs/how-to/host-store.md` says what counts: each folder is opened below the one before and
//! through no link, and somebody whom this process trusts owns all of them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::header::is_digest;
use crate::v1::ArtifactHeader;

const SHARED_WRITE: u32 = 0o022;

/// An open file of the host store that was found to be the daemon's.
#[derive(Debug)]
pub(crate) struct HostFile {
    file: File,
    opened: Metadata,
}

impl HostFile {
    /// Open the file that a header names; `None` where it does not count.
    pub(crate) fn open(header: &ArtifactHeader) -> Option<HostFile> {
        let named = header.host_file.as_ref()?;
        let (fingerprint, module) = (&header.fingerprint, &header.module_sha256);
        if !is_digest(fingerprint) || !is_digest(module) {
            return None;
        }
        let names = [fingerprint, &module[..2], module, "artifact"];
        let tail = format!("/{}", names.join("/"));
        let folder = named.path.strip_suffix(&tail).filter(|folder| folder.starts_with('/'))?;
        if folder.split('/').skip(1).any(|name| matches!(name, "" | "." | "..")) {
            return None;
        }
        let folder = fs::canonicalize(folder).ok()?;
        let owners = owners_of(&folder);
        let (mut file, mut found) = open(&folder, libc::O_DIRECTORY, &owners)?;
        for name in names {
            let flags = if name == "artifact" {
                // A pipe in place of a file must not make the caller wait.
                libc::O_NOFOLLOW | libc::O_NONBLOCK
            } else {
                libc::O_NOFOLLOW | libc::O_DIRECTORY
            };
            // Through this link, Linux opens relative to the descriptor.
            let below = format!("/proc/self/fd/{}/{name}", file.as_raw_fd());
            (file, found) = open(Path::new(&below), flags, &owners)?;
        }
        let is_the_daemons = found.is_file()
            && found.nlink() == 1
            && (found.dev(), found.ino()) == (named.device, named.inode)
            && found.size() > 0
            && found.size() == header.size_bytes;
        is_the_daemons.then_some(HostFile { file, opened: found })
    }

    /// Where an engine can map the file, as long as this is there.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Whether somebody wrote to the file since it was opened.
    pub(crate) fn has_changed(&self) -> bool {
        let times = |at: &Metadata| (at.mtime(), at.mtime_nsec(), at.ctime(), at.ctime_nsec());
        self.file.metadata().map_or(true, |now| {
            (now.size(), times(&now)) != (self.opened.size(), times(&self.opened))
        })
    }

    /// Whether the file is younger than a second: it may change without a trace in its times.
    pub(crate) fn is_young(&self) -> bool {
        let stat = &self.opened;
        let (seconds, nanos) =
            (stat.mtime(), stat.mtime_nsec()).max((stat.ctime(), stat.ctime_nsec()));
        let changed = Duration::new(seconds.max(0) as u64, nanos.max(0) as u32);
        SystemTime::now()
            .duration_since(UNIX_EPOCH + changed)
            .map_or(true, |age| age < Duration::from_secs(1))
    }
}

/// Return the users whose files count: root, this process's user and, if nobody but root and that
/// user can put another folder into its place, the owner of the store's folder.
fn owners_of(folder: &Path) -> Vec<u32> {
    // SAFETY: it reads a number, and cannot fail.
    let mut trusted = vec![0, unsafe { libc::geteuid() }];
    let Ok(store) = fs::metadata(folder) else {
        return trusted;
    };
    for above in folder.ancestors().skip(1) {
        // A sticky folder does not help: anybody could have made the store in it.
        let is_safe = fs::metadata(above).is_ok_and(|found| {
            [0, store.uid()].contains(&found.uid()) && found.mode() & SHARED_WRITE == 0
        });
        if !is_safe {
            return trusted;
        }
    }
    trusted.push(store.uid());
    trusted
}

/// Open a file or folder; `None` unless one of `owners` owns it and nobody else can write to it.
fn open(path: &Path, flags: i32, owners: &[u32]) -> Option<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let found = file.metadata().ok()?;
    let counts = owners.contains(&found.uid()) && found.mode() & SHARED_WRITE == 0;
    counts.then_some((file, found))
}
