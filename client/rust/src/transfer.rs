//! Modules on their way to a daemon, and artifacts on their way back.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_stream::wrappers::ReceiverStream;

use crate::artifact::Artifact;
use crate::client::{path, Call, Inner, Options, Retries};
use crate::connection::Prost;
use crate::error::{Code, Error, Reason};
use crate::header;
use crate::v1::{self, compile_request::Source, compile_response::Part, Origin};

// Larger modules go in pieces, of which a cut costs one.
const UPLOAD_ABOVE_BYTES: usize = 8 << 20;
const PIECE_BYTES: usize = 256 << 10;
// A daemon puts no larger artifact into its header's message.
const INLINE_LIMIT_BYTES: u32 = 65_536;
// How long the client asks for bytes after it could not use a file.
const NO_FILE_FOR: Duration = Duration::from_secs(60);

/// What came of an artifact, also before a cut. Nobody has checked its digest.
#[derive(Default)]
struct Got {
    header: Option<v1::ArtifactHeader>,
    bytes: Vec<u8>,
    sum: Sha256,
    // The most bytes that any attempt had, of the module or the artifact.
    moved: u64,
}

impl Got {
    fn add(&mut self, bytes: &[u8], most: u64) -> Result<(), Error> {
        if (self.bytes.len() + bytes.len()) as u64 > most {
            return Err(Error::refused(format!("more came than the {most} bytes of the header")));
        }
        self.bytes.extend_from_slice(bytes);
        self.sum.update(bytes);
        self.moved = self.moved.max(self.bytes.len() as u64);
        Ok(())
    }

    fn begin_again(&mut self) {
        *self = Got { moved: self.moved, ..Got::default() };
    }
}

/// One Compile call, with what its requests have in common.
struct Compile<'a> {
    inner: &'a Arc<Inner>,
    call: &'a Call,
    options: &'a Options,
    digest: String,
    module: Option<&'a [u8]>,
    request: v1::CompileRequest,
    got: Got,
}

impl Inner {
    pub(crate) async fn compile(
        self: &Arc<Self>,
        digest: String,
        module: Option<&[u8]>,
        options: &Options,
    ) -> Result<Artifact, Error> {
        let call = self.call(options, &digest)?;
        let section = options.section.as_slice();
        let request = v1::CompileRequest {
            engine: options.engine.clone(),
            target: options.target.clone(),
            cpu: options.cpu.clone(),
            settings: options.settings.clone(),
            inline_limit_bytes: INLINE_LIMIT_BYTES,
            accept_host_file: self.takes_files
                && now_ms() > self.no_file_until_ms.load(Ordering::Relaxed),
            accept_fast: options.accept_fast,
            compatibility: if section.is_empty() {
                Vec::new()
            } else {
                Sha256::digest(section).to_vec()
            },
            ..v1::CompileRequest::default()
        };
        let got = Got::default();
        let mut compile =
            Compile { inner: self, call: &call, options, digest, module, request, got };
        compile.run().await.map_err(|error| call.named(error))
    }

    pub(crate) async fn load(
        &self,
        module: &[u8],
        options: &Options,
    ) -> Result<v1::LoadResponse, Error> {
        let digest = header::sha256_hex(module);
        let call = self.call(options, &digest)?;
        let (mut retries, mut moved) = (Retries::new(&call), 0);
        let answer = loop {
            let sent = self.send(&call, &digest, module, &options.engine, &mut moved);
            match call.within(sent).await {
                Ok(answer) => break answer,
                Err(failure) => retries.pause(failure, moved).await?,
            }
        };
        if answer.sha256 != digest {
            let what = "the daemon's answer is about another module";
            return Err(call.named(Error::new(Reason::UnexpectedAnswer, Code::DataLoss, what)));
        }
        Ok(answer)
    }

    /// Have the daemon take a module: a large one in pieces, from where the daemon stands, if it
    /// knows that; others in one message.
    async fn send(
        &self,
        call: &Call,
        digest: &str,
        module: &[u8],
        engine: &str,
        moved: &mut u64,
    ) -> Result<v1::LoadResponse, Error> {
        if module.len() > UPLOAD_ABOVE_BYTES {
            match self.upload(call, digest, module, engine, moved).await {
                Err(failure) if failure.code() == Code::Unimplemented => {}
                answer => return Ok(answer?.loaded.unwrap_or_default()),
            }
        }
        let request = v1::LoadRequest {
            module: Bytes::copy_from_slice(module),
            engine: engine.to_owned(),
            ..v1::LoadRequest::default()
        };
        self.unary(call, "Load", request).await
    }

    async fn upload(
        &self,
        call: &Call,
        digest: &str,
        module: &[u8],
        engine: &str,
        moved: &mut u64,
    ) -> Result<v1::UploadResponse, Error> {
        let request = v1::QueryUploadRequest { sha256: digest.to_owned() };
        let state: v1::QueryUploadResponse = self.unary(call, "QueryUpload", request).await?;
        *moved = state.held_bytes.max(*moved);
        let begin = usize::try_from(state.held_bytes).unwrap_or(usize::MAX).min(module.len());
        let (pieces, sent) = tokio::sync::mpsc::channel(1);
        let feed = async move {
            let mut request = v1::UploadRequest {
                sha256: digest.to_owned(),
                size_bytes: module.len() as u64,
                engine: engine.to_owned(),
                ..v1::UploadRequest::default()
            };
            let mut at = begin;
            loop {
                let piece = &module[at..module.len().min(at + PIECE_BYTES)];
                request.offset = at as u64;
                request.data = Bytes::copy_from_slice(piece);
                // If nobody takes it, the call has ended, and its answer says why.
                if pieces.send(request).await.is_err() {
                    return;
                }
                at += piece.len();
                if at >= module.len() {
                    return;
                }
                request = v1::UploadRequest::default();
            }
        };
        let mut grpc = self.ready(call).await?;
        let stream = call.request(ReceiverStream::new(sent));
        let answer = grpc.client_streaming(stream, path("Upload"), Prost::default());
        tokio::pin!(answer);
        // A daemon that refuses the module answers before it has taken all pieces.
        let answer = tokio::select! {
            answer = &mut answer => answer,
            () = feed => answer.await,
        };
        answer.map(tonic::Response::into_inner).map_err(|status| call.failed(status))
    }
}

impl Compile<'_> {
    async fn run(&mut self) -> Result<Artifact, Error> {
        self.until_done().await?;
        if let Some(header) = self.got.header.clone().filter(|header| header.host_file.is_some()) {
            // The disk may take its time.
            let inner = self.inner.clone();
            let taken =
                tokio::task::spawn_blocking(move || Artifact::of_file(&header, &inner.keys));
            let taken = self.call.within(async { Ok(taken.await.ok().flatten()) }).await?;
            if let Some(taken) = taken {
                return Ok(taken);
            }
            // Another machine's or another container's file, or a damaged one. The daemon has the
            // module by now.
            let until = now_ms() + NO_FILE_FOR.as_millis() as u64;
            self.inner.no_file_until_ms.store(until, Ordering::Relaxed);
            self.request.accept_host_file = false;
            self.until_done().await?;
        }
        let got = std::mem::take(&mut self.got);
        let header = got.header.unwrap_or_default();
        let digest = header::hex(got.sum.finalize().as_slice());
        header::check_bytes(&header, got.bytes.len() as u64, &digest)?;
        if !self.inner.keys.is_empty() {
            self.inner.keys.verify(&header)?;
        }
        Ok(Artifact::of_bytes(header, got.bytes))
    }

    async fn until_done(&mut self) -> Result<(), Error> {
        let call = self.call;
        let mut retries = Retries::new(call);
        loop {
            match call.within(self.attempt()).await {
                Ok(()) => return Ok(()),
                Err(failure) => retries.pause(failure, self.got.moved).await?,
            }
        }
    }

    /// Ask by digest, and bring the module where the daemon lacks it.
    async fn attempt(&mut self) -> Result<(), Error> {
        self.request.source = Some(Source::Sha256(self.digest.clone()));
        let mut outcome = self.shown().await;
        let (Some(module), true) = (self.module, is(&outcome, &Reason::ModuleNotLoaded)) else {
            return outcome;
        };
        if module.len() > UPLOAD_ABOVE_BYTES {
            let engine = &self.options.engine;
            self.inner.send(self.call, &self.digest, module, engine, &mut self.got.moved).await?;
            outcome = self.shown().await;
            if !is(&outcome, &Reason::ModuleNotLoaded) {
                return outcome;
            }
        }
        // Also where no tier takes so large a module: it comes with the request.
        self.request.source = Some(Source::Module(Bytes::copy_from_slice(module)));
        self.shown().await
    }

    /// Ask by what the host's engine shows, its key first.
    async fn shown(&mut self) -> Result<(), Error> {
        let outcome = self.ask().await;
        let section = &self.options.section;
        if is(&outcome, &Reason::CompatibilityUnknown) && self.request.compatibility != *section {
            self.request.compatibility = section.clone();
            return self.ask().await;
        }
        outcome
    }

    /// Make a call, for what follows on what an earlier one has brought.
    async fn ask(&mut self) -> Result<(), Error> {
        let (call, is_fresh) = (self.call, self.options.skip_cache_lookup);
        let before = self.got.header.as_ref().map(|header| header.artifact_sha256.clone());
        self.request.offset_bytes = self.got.bytes.len() as u64;
        self.request.artifact_sha256 = match &before {
            Some(digest) if !self.got.bytes.is_empty() => digest.clone(),
            _ => String::new(),
        };
        // With a header, what was compiled for this call is in a tier.
        self.request.skip_cache_lookup = is_fresh && before.is_none();
        let mut grpc = self.inner.ready(call).await?;
        let request = call.request(self.request.clone());
        let answer = grpc.server_streaming(request, path("Compile"), Prost::default()).await;
        let answer = answer.map_err(|status| call.failed(status))?;
        // Of an answer without any message, the status comes first, and nothing behind it.
        let has_ended = answer.metadata().contains_key("grpc-status");
        let mut stream: tonic::Streaming<v1::CompileResponse> = answer.into_inner();
        let mut most = None;
        while let Some(message) = stream.message().await.map_err(|status| call.failed(status))? {
            match (message.part, most) {
                (Some(Part::Header(mut header)), None) => {
                    let limit = self.inner.max_artifact_bytes();
                    header::check(&self.request, &self.digest, &header, limit)?;
                    let is_other =
                        before.as_ref().is_some_and(|old| *old != header.artifact_sha256);
                    if is_fresh && is_other && header.origin() != Origin::Compiled {
                        self.got.begin_again();
                        let what = "the daemon has lost what it compiled for this call";
                        return Err(Error::refused(what).passing());
                    }
                    if header.offset_bytes == 0 {
                        self.got.begin_again();
                    }
                    most = Some(header.size_bytes);
                    let inline = std::mem::take(&mut header.inline_artifact);
                    self.got.header = Some(header);
                    self.got.add(&inline, most.unwrap_or_default())?;
                }
                (Some(Part::Chunk(chunk)), Some(most)) => self.got.add(&chunk, most)?,
                // A newer daemon's kind of message, or an empty one.
                (None, Some(_)) => {}
                _ => {
                    let what = "the daemon's answer does not begin with its one header";
                    return Err(Error::refused(what));
                }
            }
        }
        match stream.trailers().await.map_err(|status| call.failed(status))? {
            None if !has_ended => Err(call.cut()),
            _ if most.is_none() => {
                Err(Error::refused("the daemon's answer does not begin with its one header"))
            }
            _ => Ok(()),
        }
    }
}

fn is<A>(outcome: &Result<A, Error>, reason: &Reason) -> bool {
    outcome.as_ref().is_err_and(|failure| failure.reason() == reason)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
