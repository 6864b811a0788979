// SHA-256, Ed25519 and base64.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace wasmkiln {

// A digest over bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void add(const void* data, std::size_t size);
  // Return 64 lowercase hexadecimal digits. Call it once.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view bytes);
std::string to_hex(std::string_view bytes);
// Return nothing unless the text is canonical base64.
std::optional<std::string> from_base64(std::string_view text);
std::string to_base64(std::string_view bytes);
bool is_digest(std::string_view text);
// Return the 32 bytes of an Ed25519 public key. Throw std::invalid_argument.
std::string public_key(const std::string& text);
bool ed25519_verifies(const std::string& key, std::string_view message,
                      std::string_view signature);

}  // namespace wasmkiln
