#include "compile_stream.h"

#include <algorithm>
#include <utility>

#include "header_checks.h"
#include "host_file.h"
#include "status.h"

namespace wasmkiln {
namespace {

// A newer daemon may send parts that this client does not know, but not endlessly.
constexpr int kMaxEmptyMessages = 100;
// Room made for an artifact before it is here: more grows as it comes.
constexpr std::uint64_t kMostBytesAtOnce = 64 << 20;
constexpr int kResourceExhausted = 8;

}  // namespace

CompileStream::CompileStream(const v1::CompileRequest& request, std::string module_sha256,
                             v1::Kind kind, std::uint64_t max_bytes, const TrustedKeys& trusted)
    : request_(request),
      module_sha256_(std::move(module_sha256)),
      kind_(kind),
      max_bytes_(max_bytes),
      trusted_(trusted) {}

void CompileStream::add(v1::CompileResponse&& message) {
  if (message.has_header()) {
    begin(std::move(*message.mutable_header()));
  } else if (!message.chunk().empty()) {
    if (!has_header_) throw_mismatch("the daemon's answer has bytes before its header");
    if (is_whole_) throw_mismatch("the artifact is complete, and more bytes follow");
    append(message.chunk());
  } else if (++empty_messages_ > kMaxEmptyMessages) {
    throw_mismatch("the daemon sent too many empty messages");
  }
}

void CompileStream::begin(v1::ArtifactHeader&& header) {
  if (has_header_) throw_mismatch("the daemon's answer has two headers");
  check_header(request_, module_sha256_, kind_, header);
  if (header.size_bytes() > max_bytes_) {
    ErrorDetails details;
    details.code = kResourceExhausted;
    details.reason = "ARTIFACT_TOO_LARGE";
    details.metadata = {{"size_bytes", std::to_string(header.size_bytes())},
                        {"limit_bytes", std::to_string(max_bytes_)}};
    throw ArtifactTooLarge("the artifact has " + std::to_string(header.size_bytes()) +
                               " bytes, above this client's limit of " +
                               std::to_string(max_bytes_) + ": raise max_artifact_bytes",
                           details);
  }
  has_header_ = true;
  artifact_.header_ = std::move(header);
  std::string inline_artifact = std::move(*artifact_.header_.mutable_inline_artifact());
  artifact_.header_.clear_inline_artifact();
  if (artifact_.header_.has_host_file() || !inline_artifact.empty()) is_whole_ = true;
  artifact_.bytes_.reserve(std::min(artifact_.header_.size_bytes(), kMostBytesAtOnce));
  if (!inline_artifact.empty()) append(inline_artifact);
}

void CompileStream::append(const std::string& chunk) {
  if (artifact_.bytes_.size() + chunk.size() > artifact_.header_.size_bytes()) {
    throw_mismatch("the artifact is longer than the " +
                   std::to_string(artifact_.header_.size_bytes()) + " bytes of its header");
  }
  digest_.add(chunk.data(), chunk.size());
  artifact_.bytes_ += chunk;
}

Artifact CompileStream::finish() {
  if (!has_header_) throw_mismatch("the daemon's answer ended without a header");
  const v1::ArtifactHeader& header = artifact_.header_;
  if (header.has_host_file()) {
    check_file(artifact_);
  } else {
    if (artifact_.bytes_.size() != header.size_bytes()) {
      throw_mismatch("the artifact ended after " + std::to_string(artifact_.bytes_.size()) +
                     " of " + std::to_string(header.size_bytes()) + " bytes");
    }
    std::string actual = digest_.hex();
    if (actual != header.artifact_sha256()) {
      throw_mismatch("the artifact's bytes have the SHA-256 " + actual + ", its header says " +
                     quoted(header.artifact_sha256()));
    }
  }
  if (!trusted_.empty()) check_attestation(header, trusted_);
  return std::move(artifact_);
}

void CompileStream::check_file(Artifact& artifact) const {
  auto file = Artifact::OpenFile::open(artifact.header_);
  artifact.host_file_ = artifact.header_.host_file().path();
  if (trusted_.empty()) {
    artifact.file_ = std::move(file);
    return;
  }
  // Keys are asked for what is loaded, so read it. A young file may change after that without a
  // trace: keep what was read.
  std::string actual;
  if (file->is_racy()) {
    artifact.bytes_ = file->read();
    actual = sha256_hex(artifact.bytes_);
    artifact.host_file_.clear();
  } else {
    actual = file->sha256();
    artifact.file_ = std::move(file);
  }
  if (actual != artifact.header_.artifact_sha256()) {
    throw Refused("the file's bytes are not those of its header");
  }
}

}  // namespace wasmkiln
