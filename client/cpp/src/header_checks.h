// Whether a header is about what the call asked for. A signature cannot replace that: it binds an
// artifact to its header, and an attacker may answer with another signed artifact.
#pragma once

#include <string>

#include "wasmkiln/v1/module_service.pb.h"

namespace wasmkiln {

// Throw ArtifactMismatch unless the header fits the request. `kind` is that of the module's
// preamble, or KIND_UNSPECIFIED where only its digest is known.
void check_header(const v1::CompileRequest& request, const std::string& module_sha256,
                  v1::Kind kind, const v1::ArtifactHeader& header);

// Return the kind in a module's preamble, or KIND_UNSPECIFIED.
v1::Kind kind_of(std::string_view module);

}  // namespace wasmkiln
