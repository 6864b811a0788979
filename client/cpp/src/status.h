// From a failed call to the error that a caller sees.
#pragma once

#include <grpcpp/support/status.h>

#include <chrono>
#include <string>

#include "wasmkiln/errors.h"

namespace wasmkiln {

// What messages say of a call.
struct CallFacts {
  std::string address;
  std::chrono::milliseconds timeout;
  std::string request_id;
};

// Throw the error of a call that failed.
[[noreturn]] void throw_status(const grpc::Status& status, const CallFacts& call);

// Throw an error of the client's own again, with the id of the request that it is about.
[[noreturn]] void throw_of_request(const WasmkilnError& error, const std::string& request_id);

// Throw ArtifactMismatch, ArtifactTooLarge and their like, which are the client's own.
[[noreturn]] void throw_mismatch(const std::string& message);
[[noreturn]] void throw_unexpected(const std::string& message);

// Return a text that a daemon sent as one printable line, cut where it is long.
std::string quoted(const std::string& text);

}  // namespace wasmkiln
