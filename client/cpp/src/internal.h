// What the sources of the client share.
#pragma once

#include <grpcpp/support/status.h>

#include <map>
#include <string>
#include <string_view>

#include "wasmkiln/errors.h"
#include "wasmkiln/v1/types.pb.h"

namespace wasmkiln {

// Trusted public keys of 32 bytes by their ids, the SHA-256 of each.
using TrustedKeys = std::map<std::string, std::string>;

std::string sha256_raw(std::string_view bytes);
std::string sha256_hex(std::string_view bytes);
bool is_digest(const std::string& text);

// Return the keys in a text by their ids. Throw std::invalid_argument if there is none.
TrustedKeys parse_keys(const std::string& text);

// Throw AttestationInvalid unless one of the keys signed all that the header claims. The caller
// has to compare the artifact's bytes with the header's digest.
void check_attestation(const v1::ArtifactHeader& header, const TrustedKeys& trusted);

// Throw the error of a call that failed, or of an answer that the client refuses.
[[noreturn]] void throw_status(const grpc::Status& status, const std::string& address);
[[noreturn]] void refuse(const std::string& reason, const std::string& message,
                         std::map<std::string, std::string> metadata = {});

}  // namespace wasmkiln
