// What a call of wasmkiln::Client throws.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace wasmkiln {

// A field of the request that the daemon refused, and why.
struct FieldViolation {
  std::string field;
  std::string description;
};

struct ErrorDetails {
  // The status code of gRPC.
  int code = 2;
  // The contract's word for what is wrong, for example "MODULE_INVALID"; decide by it. The client's
  // own are CONNECTION_FAILED, DEADLINE_EXCEEDED, ARTIFACT_MISMATCH, ATTESTATION_INVALID and
  // UNEXPECTED_ANSWER. Empty where another server failed.
  std::string reason;
  // What docs/reference/errors.md lists for the reason.
  std::map<std::string, std::string> metadata;
  // How long to wait before another try, where the daemon says so.
  std::optional<std::chrono::milliseconds> retry_after;
  std::vector<FieldViolation> field_violations;
  // What the daemon's log calls this request.
  std::string request_id;
};

// Every failure of a call.
class WasmkilnError : public std::runtime_error {
 public:
  WasmkilnError(const std::string& message, ErrorDetails details)
      : std::runtime_error(message), details_(std::move(details)) {}

  const ErrorDetails& details() const { return details_; }
  void set_request_id(const std::string& id) { details_.request_id = id; }

 private:
  ErrorDetails details_;
};

}  // namespace wasmkiln
