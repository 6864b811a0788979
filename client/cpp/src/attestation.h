// Who says that an artifact is what its header calls it; docs/reference/attestation.md has the format.
#pragma once

#include <map>
#include <string>

#include "wasmkiln/v1/types.pb.h"

namespace wasmkiln {

// Trusted public keys of 32 bytes by their ids, the SHA-256 of each.
using TrustedKeys = std::map<std::string, std::string>;

// Throw AttestationInvalid unless one of the keys signed all that the header claims. The caller
// has to compare the artifact's bytes with the header's digest.
void check_attestation(const v1::ArtifactHeader& header, const TrustedKeys& trusted);

}  // namespace wasmkiln
