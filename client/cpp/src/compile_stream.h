// The artifact of one Compile call: its messages put together and checked.
#pragma once

#include <cstdint>
#include <string>

#include "attestation.h"
#include "crypto.h"
#include "wasmkiln/client.h"

namespace wasmkiln {

class CompileStream {
 public:
  CompileStream(const v1::CompileRequest& request, std::string module_sha256, v1::Kind kind,
                std::uint64_t max_bytes, const TrustedKeys& trusted);

  // Take the next message. Throws ArtifactMismatch or ArtifactTooLarge.
  void add(v1::CompileResponse&& message);
  // Return the checked artifact. Throws ArtifactMismatch, AttestationInvalid, and Refused where
  // the daemon named a file that does not count.
  Artifact finish();

 private:
  void begin(v1::ArtifactHeader&& header);
  void append(const std::string& chunk);
  void check_file(Artifact& artifact) const;

  const v1::CompileRequest& request_;
  std::string module_sha256_;
  v1::Kind kind_;
  std::uint64_t max_bytes_;
  const TrustedKeys& trusted_;
  bool has_header_ = false;
  bool is_whole_ = false;
  int empty_messages_ = 0;
  Sha256 digest_;
  Artifact artifact_;
};

}  // namespace wasmkiln
