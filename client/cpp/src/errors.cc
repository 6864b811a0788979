#include "wasmkiln/errors.h"

#include <algorithm>
#include <utility>

#include "internal.h"
#include "wasmkiln/rpc/error_details.pb.h"
#include "wasmkiln/rpc/status.pb.h"

namespace wasmkiln {
namespace {

constexpr std::int64_t kMaxRetrySeconds = 365 * 24 * 3600;

template <typename Message>
bool unpack(const google::protobuf::Any& packed, const std::string& name, Message* message) {
  return packed.type_url() == "type.googleapis.com/google.rpc." + name &&
         message->ParseFromString(packed.value());
}

}  // namespace

void refuse(const std::string& reason, const std::string& message,
            std::map<std::string, std::string> metadata) {
  ErrorDetails details;
  bool is_too_large = reason == "ARTIFACT_TOO_LARGE";
  details.code = is_too_large ? grpc::StatusCode::RESOURCE_EXHAUSTED : grpc::StatusCode::DATA_LOSS;
  details.reason = reason;
  details.metadata = std::move(metadata);
  throw WasmkilnError(message, std::move(details));
}

void throw_status(const grpc::Status& status, const std::string& address) {
  ErrorDetails details;
  details.code = status.error_code();
  std::string text = status.error_message();
  rpc::Status rich;
  // Damaged details, or another server's: code and text still count.
  if (!rich.ParseFromString(status.error_details())) rich.Clear();
  for (const auto& detail : rich.details()) {
    rpc::ErrorInfo info;
    rpc::RetryInfo retry;
    rpc::BadRequest bad;
    if (unpack(detail, "ErrorInfo", &info) && info.domain() == "wasmkiln") {
      details.reason = info.reason();
      details.metadata = {info.metadata().begin(), info.metadata().end()};
    } else if (unpack(detail, "RetryInfo", &retry)) {
      const auto& delay = retry.retry_delay();
      std::int64_t seconds = std::clamp<std::int64_t>(delay.seconds(), 0, kMaxRetrySeconds);
      details.retry_after = std::chrono::milliseconds(seconds * 1000 + delay.nanos() / 1000000);
    } else if (unpack(detail, "BadRequest", &bad)) {
      for (const auto& one : bad.field_violations()) {
        details.field_violations.push_back({one.field(), one.description()});
      }
    }
  }
  if (details.reason.empty()) {
    details.metadata = {{"address", address}, {"detail", text}};
    if (details.code == grpc::StatusCode::UNAVAILABLE) {
      details.reason = "CONNECTION_FAILED";
      text = "no daemon answers at " + address + " (" + text +
             "): start one with `wasmkilnd serve`, or check the address";
    } else if (details.code == grpc::StatusCode::DEADLINE_EXCEEDED) {
      details.reason = "DEADLINE_EXCEEDED";
      text = "no answer from " + address + " within the call's time";
    }
  }
  throw WasmkilnError(text, std::move(details));
}

}  // namespace wasmkiln
