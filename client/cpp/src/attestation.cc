// Who says that an artifact is what its header calls it; docs/how-to/verify.md has the
// format, and docs/how-to/keys.md says which keys count.
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "internal.h"
#include "wasmkiln/client.h"

namespace wasmkiln {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;
using google::protobuf::util::JsonStringToMessage;
using google::protobuf::util::MessageDifferencer;
namespace fs = std::filesystem;

constexpr std::size_t kKeyBytes = 32;
constexpr char kBegin[] = "-----BEGIN PUBLIC KEY-----";
constexpr char kPayloadType[] = "application/vnd.in-toto+json";
// The start of every Ed25519 public key in DER (RFC 8410); the key follows.
const std::string kPrefix("\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", 12);

const unsigned char* raw(std::string_view bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

// Return the bytes, or nothing for what is no base64.
std::string from_base64(std::string_view text) {
  std::string bytes(text.size(), '\0');
  auto* out = reinterpret_cast<unsigned char*>(bytes.data());
  int size = 0, rest = 0;
  EVP_ENCODE_CTX* context = EVP_ENCODE_CTX_new();
  EVP_DecodeInit(context);
  bool good =
      EVP_DecodeUpdate(context, out, &size, raw(text), static_cast<int>(text.size())) >= 0 &&
      EVP_DecodeFinal(context, out + size, &rest) == 1;
  EVP_ENCODE_CTX_free(context);
  bytes.resize(good ? size + rest : 0);
  return bytes;
}

std::string hex(std::string_view bytes) {
  std::string text;
  for (unsigned char byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

std::string pem_of(const std::string& key) {
  std::string der = kPrefix + key, text(2 * der.size(), '\0');
  auto* out = reinterpret_cast<unsigned char*>(text.data());
  text.resize(EVP_EncodeBlock(out, raw(der), static_cast<int>(der.size())));
  return kBegin + ("\n" + text) + "\n-----END PUBLIC KEY-----\n";
}

bool is_signed(const std::string& key, const std::string& message, const std::string& signature) {
  EVP_PKEY* loaded =
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, raw(key), key.size());
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  bool good = EVP_DigestVerifyInit(context, nullptr, nullptr, nullptr, loaded) == 1 &&
              EVP_DigestVerify(context, raw(signature), signature.size(), raw(message),
                               message.size()) == 1;
  EVP_MD_CTX_free(context);
  EVP_PKEY_free(loaded);
  return good;
}

std::vector<fs::path> files_of(const fs::path& folder, const std::string& ending) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ending) files.push_back(entry.path());
  }
  return files;
}

// Return what a path leads to: by the names of members, and by lists of one element; or no value.
Value at(const Struct& object, const std::string& path) {
  std::size_t dot = path.find('.');
  auto found = object.fields().find(path.substr(0, dot));
  if (found == object.fields().end()) return {};
  bool is_single = found->second.list_value().values_size() == 1;
  const Value& value = is_single ? found->second.list_value().values(0) : found->second;
  return dot == std::string::npos ? value : at(value.struct_value(), path.substr(dot + 1));
}

template <typename Map>
Value object_of(const Map& texts) {
  Value object;
  auto& fields = *object.mutable_struct_value()->mutable_fields();
  for (const auto& [name, text] : texts) fields[name].set_string_value(text);
  return object;
}

// Return where a statement says otherwise than the header, or "".
std::string difference(const Struct& statement, const v1::ArtifactHeader& header) {
  using Texts = std::map<std::string, std::string>;
  const std::string made = "predicate.buildDefinition.", given = made + "externalParameters.";
  const auto& engine = header.engine();
  bool is_core = header.kind() == v1::KIND_CORE_MODULE;
  bool is_component = header.kind() == v1::KIND_COMPONENT;
  for (const auto& [path, text] :
       Texts{{"_type", "https://in-toto.io/Statement/v1"},
             {"predicateType", "https://slsa.dev/provenance/v1"},
             {"subject.digest.sha256", header.artifact_sha256()},
             {made + "buildType", "urn:wasmkiln:compile:v1"},
             {made + "resolvedDependencies.digest.sha256", header.module_sha256()},
             {given + "fingerprint", header.fingerprint()},
             {given + "kind", is_core ? "core" : is_component ? "component" : ""},
             {given + "target", header.target()},
             {given + "cpu", header.cpu()}}) {
    const Value said = at(statement, path);
    if (said.kind_case() != Value::kStringValue || said.string_value() != text) return path;
  }
  const std::pair<std::string, Value> objects[] = {
      {given + "engine", object_of(Texts{{"name", engine.name()},
                                         {"version", engine.version()},
                                         {"coreVersion", engine.core_version()},
                                         {"compiler", engine.compiler()}})},
      {given + "settings", object_of(header.settings())},
      {given + "changedSettings", object_of(header.changed_settings())}};
  for (const auto& [path, due] : objects) {
    if (!MessageDifferencer::Equals(due, at(statement, path))) return path;
  }
  return "";
}

}  // namespace

std::string sha256_raw(std::string_view bytes) {
  std::string digest(EVP_MAX_MD_SIZE, '\0');
  unsigned int size = 0;
  auto* out = reinterpret_cast<unsigned char*>(digest.data());
  if (EVP_Digest(bytes.data(), bytes.size(), out, &size, EVP_sha256(), nullptr) != 1) {
    throw std::runtime_error("cannot compute SHA-256: OpenSSL refuses it");
  }
  return digest.substr(0, size);
}

std::string sha256_hex(std::string_view bytes) { return hex(sha256_raw(bytes)); }

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  // Of a folder, which opens as a file does, the first read fails.
  if (!file || fs::is_directory(path)) {
    std::string why = "no such file";
    if (fs::exists(path)) why = "it is not a file that this user may read";
    throw std::invalid_argument("cannot read " + path + ": " + why);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

bool is_digest(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

TrustedKeys parse_keys(const std::string& text) {
  std::vector<std::string> found;
  for (auto at = text.find(kBegin); at != std::string::npos; at = text.find(kBegin, at + 1)) {
    std::size_t start = at + sizeof kBegin - 1;
    std::string der = from_base64(text.substr(start, text.find('-', start) - start));
    found.push_back(der.substr(0, kPrefix.size()) == kPrefix ? der.substr(kPrefix.size()) : "");
  }
  if (found.empty()) found.emplace_back();  // no key at all
  TrustedKeys keys;
  for (const std::string& key : found) {
    if (key.size() != kKeyBytes) {
      // It does not quote what may be a private key.
      throw std::invalid_argument("not an Ed25519 public key: expected PEM");
    }
    keys[sha256_hex(key)] = key;
  }
  return keys;
}

std::vector<std::string> read_keys(const std::string& path) {
  fs::path from = fs::absolute(path).lexically_normal();
  if (from.filename().empty()) from = from.parent_path();
  TrustedKeys keys;
  bool is_folder = fs::is_directory(from);
  for (const fs::path& file : is_folder ? files_of(from, ".pem") : std::vector{from}) {
    keys.merge(parse_keys(read_file(file)));
  }
  std::vector<fs::path> revoked = files_of(from / "revoked", ".json");
  if (from.filename() == "trusted") {
    for (auto& file : files_of(from.parent_path() / "revoked", ".json")) revoked.push_back(file);
  }
  for (const fs::path& file : revoked) {
    Struct revocation;
    bool is_json = JsonStringToMessage(read_file(file), &revocation).ok();
    std::string id = at(revocation, "key_id").string_value();
    if (!is_json || !is_digest(id)) {
      throw std::invalid_argument("cannot read " + file.string() +
                                  ": it does not say which key is revoked, as key_id");
    }
    keys.erase(id);
  }
  std::vector<std::string> found;
  for (const auto& [id, key] : keys) found.push_back(pem_of(key));
  // With no key nothing would be checked.
  if (found.empty()) throw std::invalid_argument("there is no key that counts in " + path);
  return found;
}

void check_attestation(const v1::ArtifactHeader& header, const TrustedKeys& trusted) {
  Struct envelope;
  bool is_json = JsonStringToMessage(header.attestation(), &envelope).ok();
  const std::string id = at(envelope, "signatures.keyid").string_value(), type = kPayloadType;
  if (!is_json || !is_digest(id)) {
    refuse("ATTESTATION_INVALID", "the artifact has no attestation that can be read",
           {{"cause", "unsigned"}});
  }
  auto key = trusted.find(id);
  if (key == trusted.end()) {
    refuse("ATTESTATION_INVALID", "the attestation is signed by a key that is not trusted: " + id,
           {{"cause", "stranger"}, {"key_id", id}});
  }
  const std::string signature = from_base64(at(envelope, "signatures.sig").string_value());
  std::string body = from_base64(at(envelope, "payload").string_value()), problem;
  std::string message = "DSSEv1 " + std::to_string(type.size()) + " " + type + " " +
                        std::to_string(body.size()) + " " + body;
  Struct statement;
  if (!is_signed(key->second, message, signature)) {
    problem = "signature is not by the key that it names";
  } else if (!JsonStringToMessage(body, &statement).ok()) {
    problem = "statement is not about an artifact";
  } else if (std::string name = difference(statement, header); !name.empty()) {
    problem = name + " is another than the header's";
  }
  if (!problem.empty()) {
    refuse("ATTESTATION_INVALID", "the attestation's " + problem,
           {{"cause", "mismatch"}, {"key_id", id}});
  }
}

}  // namespace wasmkiln
