#include "attestation.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <optional>
#include <string_view>

#include "crypto.h"
#include "wasmkiln/errors.h"

namespace wasmkiln {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

constexpr char kPayloadType[] = "application/vnd.in-toto+json";
constexpr char kStatementType[] = "https://in-toto.io/Statement/v1";
constexpr char kPredicateType[] = "https://slsa.dev/provenance/v1";
constexpr char kBuildType[] = "urn:wasmkiln:compile:v1";
constexpr int kDataLoss = 15;

[[noreturn]] void refuse(const char* cause, const std::string& why, const std::string& key = "") {
  ErrorDetails details;
  details.code = kDataLoss;
  details.reason = "ATTESTATION_INVALID";
  details.metadata["cause"] = cause;
  if (!key.empty()) details.metadata["key_id"] = key;
  throw AttestationInvalid(why, details);
}

// An envelope is byte for byte as a daemon writes it: sorted keys, no spaces, one signature. So it
// needs no parser before the signature is checked.
struct Envelope {
  std::string payload;
  std::string key_id;
  std::string signature;
};

bool skip(std::string_view& text, std::string_view expected) {
  if (text.substr(0, expected.size()) != expected) return false;
  text.remove_prefix(expected.size());
  return true;
}

std::string_view until_quote(std::string_view& text) {
  std::string_view value = text.substr(0, text.find('"'));
  text.remove_prefix(value.size());
  return value;
}

std::optional<Envelope> read_envelope(std::string_view text) {
  Envelope envelope;
  if (!skip(text, "{\"payload\":\"")) return std::nullopt;
  auto payload = from_base64(until_quote(text));
  if (!skip(text, std::string("\",\"payloadType\":\"") + kPayloadType +
                      "\",\"signatures\":[{\"keyid\":\"")) {
    return std::nullopt;
  }
  envelope.key_id = std::string(until_quote(text));
  if (!skip(text, "\",\"sig\":\"")) return std::nullopt;
  auto signature = from_base64(until_quote(text));
  if (text != "\"}]}" || !payload || !signature || !is_digest(envelope.key_id)) {
    return std::nullopt;
  }
  envelope.payload = *payload;
  envelope.signature = *signature;
  return envelope;
}

// Return the value at a path of names, or null.
const Value* find(const Struct& from, std::initializer_list<const char*> path) {
  const Struct* at = &from;
  const Value* value = nullptr;
  for (const char* name : path) {
    if (!at) return nullptr;
    auto found = at->fields().find(name);
    if (found == at->fields().end()) return nullptr;
    value = &found->second;
    at = value->has_struct_value() ? &value->struct_value() : nullptr;
  }
  return value;
}

std::string text_of(const Value* value) {
  return value && value->kind_case() == Value::kStringValue ? value->string_value() : "";
}

// Return the SHA-256 of the only element of a list of things with digests; "" for any other list.
std::string only_digest(const Value* list) {
  if (!list || !list->has_list_value() || list->list_value().values_size() != 1) return "";
  const Value& only = list->list_value().values(0);
  return only.has_struct_value() ? text_of(find(only.struct_value(), {"digest", "sha256"})) : "";
}

template <typename Map>
bool same_texts(const Value* attested, const Map& claimed) {
  if (!attested || !attested->has_struct_value()) return false;
  const auto& fields = attested->struct_value().fields();
  if (fields.size() != claimed.size()) return false;
  for (const auto& [name, value] : claimed) {
    auto found = fields.find(name);
    if (found == fields.end() || found->second.kind_case() != Value::kStringValue ||
        found->second.string_value() != value) {
      return false;
    }
  }
  return true;
}

// Return what the statement says otherwise than the header, or nullptr.
const char* difference(const Struct& statement, const v1::ArtifactHeader& header) {
  const Value* build = find(statement, {"predicate", "buildDefinition"});
  const Value* given = find(statement, {"predicate", "buildDefinition", "externalParameters"});
  if (!build || !given || !given->has_struct_value() ||
      text_of(find(statement, {"_type"})) != kStatementType ||
      text_of(find(statement, {"predicateType"})) != kPredicateType ||
      text_of(find(build->struct_value(), {"buildType"})) != kBuildType) {
    return "kind of statement";
  }
  const Struct& made = given->struct_value();
  if (only_digest(find(statement, {"subject"})) != header.artifact_sha256()) return "artifact";
  if (only_digest(find(build->struct_value(), {"resolvedDependencies"})) !=
      header.module_sha256()) {
    return "module";
  }
  if (text_of(find(made, {"fingerprint"})) != header.fingerprint()) return "fingerprint";
  const char* kind = header.kind() == v1::KIND_CORE_MODULE ? "core"
                     : header.kind() == v1::KIND_COMPONENT ? "component"
                                                           : "";
  if (text_of(find(made, {"kind"})) != kind) return "kind";
  std::map<std::string, std::string> engine = {{"name", header.engine().name()},
                                               {"version", header.engine().version()},
                                               {"coreVersion", header.engine().core_version()},
                                               {"compiler", header.engine().compiler()}};
  if (!same_texts(find(made, {"engine"}), engine)) return "engine";
  if (text_of(find(made, {"target"})) != header.target()) return "target";
  if (text_of(find(made, {"cpu"})) != header.cpu()) return "cpu";
  if (!same_texts(find(made, {"settings"}), header.settings())) return "settings";
  if (!same_texts(find(made, {"changedSettings"}), header.changed_settings())) {
    return "changed settings";
  }
  return nullptr;
}

}  // namespace

void check_attestation(const v1::ArtifactHeader& header, const TrustedKeys& trusted) {
  if (header.attestation().empty()) refuse("unsigned", "the artifact has no attestation");
  auto envelope = read_envelope(header.attestation());
  if (!envelope) {
    refuse("unsigned",
           "cannot read the attestation: it is not a DSSE envelope as wasmkiln writes it");
  }
  auto key = trusted.find(envelope->key_id);
  if (key == trusted.end()) {
    refuse("stranger", "the attestation is signed by a key that is not trusted: " + envelope->key_id,
           envelope->key_id);
  }
  std::string type = kPayloadType;
  std::string signed_bytes = "DSSEv1 " + std::to_string(type.size()) + " " + type + " " +
                             std::to_string(envelope->payload.size()) + " " + envelope->payload;
  if (!ed25519_verifies(key->second, signed_bytes, envelope->signature)) {
    refuse("mismatch", "the attestation's signature is not by the key that it names", key->first);
  }
  Struct statement;
  if (!google::protobuf::util::JsonStringToMessage(envelope->payload, &statement).ok()) {
    refuse("mismatch", "the attestation's statement is not about an artifact", key->first);
  }
  if (const char* field = difference(statement, header)) {
    refuse("mismatch", std::string("the attestation is about another ") + field, key->first);
  }
}

}  // namespace wasmkiln
