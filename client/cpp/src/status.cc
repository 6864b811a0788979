#include "status.h"

#include <algorithm>
#include <map>

#include "wasmkiln/errors.h"
#include "wasmkiln/rpc/error_details.pb.h"
#include "wasmkiln/rpc/status.pb.h"

namespace wasmkiln {
namespace {

constexpr char kDomain[] = "wasmkiln";
constexpr int kMaxDetails = 100;  // an honest error has three
constexpr std::size_t kMaxQuoted = 200;
constexpr std::int64_t kMaxSeconds = 315576000000;  // of a Duration: 10,000 years
constexpr int kDataLoss = 15;

// What gRPC's own words for a failed connection mean. The first that fits.
const std::pair<const char*, const char*> kCauses[] = {
    {"DNS resolution failed", "unknown host"},
    {"Domain name not found", "unknown host"},
    {"Connection refused", "connection refused"},
    {"No such file or directory", "no such socket"},
    {"Permission denied", "permission denied for this user"},
    {"No route to host", "host unreachable"},
    {"Network is unreachable", "host unreachable"},
    {"onnection timed out", "host unreachable"},
    {"CERTIFICATE_VERIFY_FAILED", "its certificate is signed by none of the trusted CAs"},
    {"certificate verify failed", "its certificate is signed by none of the trusted CAs"},
    {"WRONG_VERSION_NUMBER", "it speaks no TLS"},
    {"wrong version number", "it speaks no TLS"},
    {"andshake failed", "the TLS handshake failed: compare the CA and the name with its certificate"},
    {"Hostname Verification Check failed", "its certificate is for other hosts"},
    {"Failed parsing HTTP/2", "what listens there speaks no gRPC"},
    {"failed to connect to all addresses", "it may speak TLS only"},
    {"Socket closed", "the connection was lost"},
    {"Connection reset by peer", "the connection was lost"},
};

template <typename Message>
bool unpack(const google::protobuf::Any& packed, const char* name, Message* message) {
  const std::string& url = packed.type_url();
  std::size_t slash = url.rfind('/');
  return url.compare(slash == std::string::npos ? 0 : slash + 1, std::string::npos, name) == 0 &&
         message->ParseFromString(packed.value());
}

std::string connection_failed(const std::string& text, const CallFacts& call) {
  std::string cause;
  for (const auto& [words, meaning] : kCauses) {
    if (text.find(words) != std::string::npos) {
      cause = std::string(" (") + meaning + ")";
      break;
    }
  }
  return "no daemon answers at " + call.address + cause +
         ": start one with `wasmkilnd serve`, or check the address";
}

// Throw for what gRPC itself reports; return where it is none of these.
void throw_without_reason(const std::string& text, const CallFacts& call, ErrorDetails details) {
  details.metadata = {{"address", call.address}, {"detail", text}};
  switch (details.code) {
    case grpc::StatusCode::UNAVAILABLE:
      details.reason = "CONNECTION_FAILED";
      throw_error(connection_failed(text, call), details);
    case grpc::StatusCode::DEADLINE_EXCEEDED: {
      details.reason = "DEADLINE_EXCEEDED";
      std::string timeout = std::to_string(call.timeout.count());
      throw_error("no answer from " + call.address + " within " + timeout + " ms", details);
    }
    case grpc::StatusCode::UNIMPLEMENTED:
      throw_error("the daemon at " + call.address +
                      " does not serve this call: it is older than this client, or no wasmkiln "
                      "daemon",
                  details);
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      // Where the answer is too large, the core says CLIENT.
      if (text.find("eceived message larger than max") != std::string::npos &&
          text.find("CLIENT: ") == std::string::npos) {
        details.reason = "MODULE_TOO_LARGE";
        throw_error("the module is larger than the daemon accepts (" + quoted(text) + ")",
                    details);
      }
  }
}

}  // namespace

void throw_status(const grpc::Status& status, const CallFacts& call) {
  ErrorDetails details;
  details.code = status.error_code();
  details.request_id = call.request_id;
  rpc::Status rich;
  // Damaged details, or another server's: code and text still count.
  if (!rich.ParseFromString(status.error_details())) rich.Clear();
  for (int at = 0; at < std::min(rich.details_size(), kMaxDetails); ++at) {
    rpc::ErrorInfo info;
    rpc::RetryInfo retry;
    rpc::BadRequest bad;
    if (unpack(rich.details(at), "google.rpc.ErrorInfo", &info) && info.domain() == kDomain) {
      details.reason = info.reason();
      details.metadata = {info.metadata().begin(), info.metadata().end()};
    } else if (unpack(rich.details(at), "google.rpc.RetryInfo", &retry)) {
      std::int64_t seconds = std::clamp<std::int64_t>(retry.retry_delay().seconds(), 0, kMaxSeconds);
      std::int64_t nanos = std::clamp(retry.retry_delay().nanos(), 0, 999999999);
      details.retry_after = std::chrono::milliseconds(seconds * 1000 + nanos / 1000000);
    } else if (unpack(rich.details(at), "google.rpc.BadRequest", &bad)) {
      for (const auto& one : bad.field_violations()) {
        details.field_violations.push_back({one.field(), one.description()});
      }
    }
  }
  std::string text = status.error_message();
  if (details.reason.empty()) throw_without_reason(text, call, details);
  auto named = details.metadata.find("request_id");
  if (named != details.metadata.end()) details.request_id = named->second;
  if (text.empty()) text = details.reason.empty() ? "the call failed" : details.reason;
  if (details.reason == "CREDENTIALS_MISSING") text += " (ClientOptions: token or token_file, or tls->cert)";
  throw_error(text, std::move(details));
}

void throw_of_request(const WasmkilnError& error, const std::string& request_id) {
  throw_error(error.what(), {error.code(), error.reason(), error.metadata(), error.retry_after(),
                             error.field_violations(), request_id});
}

void throw_mismatch(const std::string& message) {
  ErrorDetails details;
  details.code = kDataLoss;
  details.reason = "ARTIFACT_MISMATCH";
  throw ArtifactMismatch(message, details);
}

void throw_unexpected(const std::string& message) {
  ErrorDetails details;
  details.code = kDataLoss;
  details.reason = "UNEXPECTED_ANSWER";
  throw UnexpectedAnswer(message, details);
}

std::string quoted(const std::string& text) {
  std::string line;
  for (char c : text.substr(0, kMaxQuoted)) {
    line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  }
  return text.size() > kMaxQuoted ? line + "..." : line;
}

}  // namespace wasmkiln
