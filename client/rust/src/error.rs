//! What can go wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prost::Message;

use crate::google::rpc;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a call failed: decide by this. `docs/reference/errors.md` says what to do.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
            /// A reason that is newer than this crate; empty for a failure of gRPC itself.
            Other(String),
        }

        impl Reason {
            /// The contract's word for it, such as `MODULE_INVALID`.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Reason::$name => $text,)+
                    Reason::Other(text) => text,
                }
            }

            fn named(text: &str) -> Reason {
                match text {
                    $($text => Reason::$name,)+
                    _ => Reason::Other(text.to_owned()),
                }
            }
        }
    };
}

reasons! {
    /// The daemon cannot use the request; see [`Error::violations`].
    InvalidRequest = "INVALID_REQUEST",
    /// The module's bytes are no WebAssembly binary.
    NotWasm = "NOT_WASM",
    /// The module is malformed or invalid.
    ModuleInvalid = "MODULE_INVALID",
    /// The module is above the daemon's limit.
    ModuleTooLarge = "MODULE_TOO_LARGE",
    /// The module has another SHA-256 than the call says.
    DigestMismatch = "DIGEST_MISMATCH",
    /// Another call took the upload over, or it was cut.
    UploadInterrupted = "UPLOAD_INTERRUPTED",
    /// The daemon serves no such engine.
    EngineUnknown = "ENGINE_UNKNOWN",
    /// An operator removed the engine.
    EngineRemoved = "ENGINE_REMOVED",
    /// The engine has no such target or CPU.
    TargetUnsupported = "TARGET_UNSUPPORTED",
    /// The engine has no such setting or value.
    SettingUnknown = "SETTING_UNKNOWN",
    /// The daemon has not seen this engine yet. The client then shows it.
    CompatibilityUnknown = "COMPATIBILITY_UNKNOWN",
    /// Nothing that this daemon makes loads in the host's engine; metadata: `differences`.
    CompatibilityUnsupported = "COMPATIBILITY_UNSUPPORTED",
    /// The engine does not accept the module, and none finds it invalid.
    EngineLacksFeature = "ENGINE_LACKS_FEATURE",
    /// The daemon has no module of this digest.
    ModuleNotLoaded = "MODULE_NOT_LOADED",
    /// The compilation took longer than its limit.
    CompileTimeout = "COMPILE_TIMEOUT",
    /// The compilation took more memory than its limit.
    CompileMemoryLimit = "COMPILE_MEMORY_LIMIT",
    /// The artifact is above the daemon's limit, or this client's.
    ArtifactTooLarge = "ARTIFACT_TOO_LARGE",
    /// The compiler crashed on this module.
    CompilerCrashed = "COMPILER_CRASHED",
    /// An operator of the daemon ended the job that worked on the module.
    JobEnded = "JOB_ENDED",
    /// The module broke the compiler not long ago.
    ModuleQuarantined = "MODULE_QUARANTINED",
    /// Too many calls or compilations wait: retry after [`Error::retry_after`].
    CompileQueueFull = "COMPILE_QUEUE_FULL",
    /// The caller has used up a quota.
    QuotaExceeded = "QUOTA_EXCEEDED",
    /// No worker of the engine starts.
    WorkerUnavailable = "WORKER_UNAVAILABLE",
    /// The daemon shuts down.
    ServerDraining = "SERVER_DRAINING",
    /// The daemon asks who calls.
    CredentialsMissing = "CREDENTIALS_MISSING",
    /// The token or the certificate does not count.
    CredentialsInvalid = "CREDENTIALS_INVALID",
    /// The caller may not do this.
    RoleMissing = "ROLE_MISSING",
    /// A defect of the daemon.
    Internal = "INTERNAL",
    /// No daemon answers at the address, or TLS fails.
    ConnectionFailed = "CONNECTION_FAILED",
    /// No answer within the call's own time.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    /// The bytes differ from their header, or the header from the call.
    ArtifactMismatch = "ARTIFACT_MISMATCH",
    /// No trusted key signed the artifact. Metadata: `cause`, which is `unsigned`, `stranger` or
    /// `mismatch`.
    AttestationInvalid = "ATTESTATION_INVALID",
    /// The daemon's answer is about something else.
    UnexpectedAnswer = "UNEXPECTED_ANSWER",
    /// An argument cannot be used. The client says so before any call.
    UnusableArgument = "UNUSABLE_ARGUMENT",
}

macro_rules! codes {
    ($($name:ident = $text:literal,)+) => {
        /// A status code of gRPC, which says roughly what kind of failure it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $text, "`")] $name,)+
        }

        impl Code {
            /// gRPC's word for it, such as `NOT_FOUND`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)+
                }
            }
        }

        // In the order of their numbers.
        const CODES: &[Code] = &[$(Code::$name),+];
    };
}

codes! {
    Ok = "OK",
    Cancelled = "CANCELLED",
    Unknown = "UNKNOWN",
    InvalidArgument = "INVALID_ARGUMENT",
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    NotFound = "NOT_FOUND",
    AlreadyExists = "ALREADY_EXISTS",
    PermissionDenied = "PERMISSION_DENIED",
    ResourceExhausted = "RESOURCE_EXHAUSTED",
    FailedPrecondition = "FAILED_PRECONDITION",
    Aborted = "ABORTED",
    OutOfRange = "OUT_OF_RANGE",
    Unimplemented = "UNIMPLEMENTED",
    Internal = "INTERNAL",
    Unavailable = "UNAVAILABLE",
    DataLoss = "DATA_LOSS",
    Unauthenticated = "UNAUTHENTICATED",
}

/// Every failure of this crate.
#[derive(Clone, Debug)]
pub struct Error(Box<Failure>);

#[derive(Clone, Debug)]
struct Failure {
    reason: Reason,
    code: Code,
    message: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    request_id: String,
    violations: Vec<(String, String)>,
    may_pass: bool,
}

impl Error {
    /// Why the call failed.
    pub fn reason(&self) -> &Reason {
        &self.0.reason
    }

    /// gRPC's status code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What the contract lists for the reason.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// How long to wait before another attempt; `None` where the daemon does not say.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What names the call in the daemon's log; empty where there was no call.
    pub fn request_id(&self) -> &str {
        &self.0.request_id
    }

    /// The fields of the request that the daemon refused, each with the reason.
    pub fn violations(&self) -> &[(String, String)] {
        &self.0.violations
    }

    /// Whether another attempt may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        self.0.may_pass
    }

    pub(crate) fn new(reason: Reason, code: Code, message: impl Into<String>) -> Error {
        Error(Box::new(Failure {
            reason,
            code,
            message: message.into(),
            metadata: BTreeMap::new(),
            retry_after: None,
            request_id: String::new(),
            violations: Vec::new(),
            may_pass: false,
        }))
    }

    /// Return the error for an argument of no use.
    pub(crate) fn unusable(message: impl Into<String>) -> Error {
        Error::new(Reason::UnusableArgument, Code::InvalidArgument, message)
    }

    /// Return the error for an answer that the client itself refuses.
    pub(crate) fn refused(message: impl Into<String>) -> Error {
        Error::new(Reason::ArtifactMismatch, Code::DataLoss, message)
    }

    pub(crate) fn late(address: &str) -> Error {
        let message = format!("no answer from {address} in time");
        Error::new(Reason::DeadlineExceeded, Code::DeadlineExceeded, message)
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Error {
        self.0.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    pub(crate) fn passing(mut self) -> Error {
        self.0.may_pass = true;
        self
    }

    pub(crate) fn of_call(mut self, request_id: &str) -> Error {
        self.0.request_id = request_id.to_owned();
        self
    }

    /// Return the error of a call that could not be made, or that was cut.
    pub(crate) fn cut(address: &str, detail: &str) -> Error {
        let message = format!(
            "no daemon answers at {address} ({detail}): start one with `wasmkilnd serve`, or check \
             the address and TLS"
        );
        let error = Error::new(Reason::ConnectionFailed, Code::Unavailable, message)
            .with("address", address)
            .with("detail", detail);
        if detail.contains(TLS_FAILS) {
            error // another attempt does not heal it
        } else {
            error.passing()
        }
    }

    pub(crate) fn from_status(status: &tonic::Status, address: &str) -> Error {
        // What the transport made of a failure has a source; what a daemon sent has none.
        let mut next = std::error::Error::source(status);
        if next.is_some() {
            let mut causes = Vec::new();
            while let Some(cause) = next {
                causes.push(cause.to_string());
                next = cause.source();
            }
            // Some say nothing else than the one below.
            causes.dedup();
            causes.retain(|cause| cause != "transport error");
            return Error::cut(address, &causes.join(": "));
        }
        let code = CODES[status.code() as usize];
        let mut error = Error::new(Reason::Other(String::new()), code, status.message());
        let sent = rpc::Status::decode(status.details()).unwrap_or_default();
        for detail in sent.details {
            let value = detail.value.as_slice();
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => {
                    let info = rpc::ErrorInfo::decode(value).unwrap_or_default();
                    if info.domain == "wasmkiln" {
                        error.0.reason = Reason::named(&info.reason);
                        error.0.metadata = info.metadata;
                    }
                }
                Some("google.rpc.RetryInfo") => {
                    let delay = rpc::RetryInfo::decode(value).unwrap_or_default().retry_delay;
                    let delay = delay.unwrap_or_default();
                    let seconds = delay.seconds.clamp(0, i64::from(u32::MAX)) as u64;
                    let nanos = delay.nanos.clamp(0, 999_999_999) as u32;
                    error.0.retry_after = Some(Duration::new(seconds, nanos));
                }
                Some("google.rpc.BadRequest") => {
                    let bad = rpc::BadRequest::decode(value).unwrap_or_default();
                    let told = bad.field_violations.into_iter();
                    error.0.violations = told.map(|one| (one.field, one.description)).collect();
                }
                _ => {}
            }
        }
        let unnamed = error.0.reason.as_str().is_empty();
        error.0.may_pass = error.0.retry_after.is_some()
            || code == Code::Unavailable
            || error.0.reason == Reason::UploadInterrupted;
        match code {
            // A daemon that ends cancels a call.
            Code::Unavailable | Code::Cancelled if unnamed => Error::cut(address, status.message()),
            // tonic says so of a stream that ends without an error and too early, as a proxy ends it.
            Code::Internal if unnamed && CUT.contains(&status.message()) => {
                Error::cut(address, status.message())
            }
            Code::DeadlineExceeded if unnamed => Error::late(address),
            // What tonic or this crate cannot read.
            Code::DataLoss | Code::OutOfRange if unnamed => {
                error.0.reason = Reason::UnexpectedAnswer;
                error
            }
            // How gRPC servers refuse a request above their own limit.
            Code::ResourceExhausted if unnamed && is_too_large(status.message()) => {
                error.0.reason = Reason::ModuleTooLarge;
                error
            }
            _ => error,
        }
    }
}

const CUT: [&str; 2] = ["Unexpected EOF decoding stream.", "Missing response message."];

/// How the connection begins what it says of TLS.
pub(crate) const TLS_FAILS: &str = "TLS fails";

fn is_too_large(message: &str) -> bool {
    message.to_lowercase().contains("received message larger than max")
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.message.is_empty() {
            return out.write_str(self.0.reason.as_str());
        }
        out.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}
