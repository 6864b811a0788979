// Public keys as people write them.
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <stdexcept>

#include "crypto.h"

namespace wasmkiln {
namespace {

constexpr std::size_t kKeyBytes = 32;

std::string from_pem(const std::string& text) {
  BIO* memory = BIO_new_mem_buf(text.data(), static_cast<int>(text.size()));
  EVP_PKEY* key = memory ? PEM_read_bio_PUBKEY(memory, nullptr, nullptr, nullptr) : nullptr;
  std::string raw(kKeyBytes, '\0');
  std::size_t size = raw.size();
  bool good = key && EVP_PKEY_base_id(key) == EVP_PKEY_ED25519 &&
              EVP_PKEY_get_raw_public_key(key, reinterpret_cast<unsigned char*>(raw.data()),
                                          &size) == 1 &&
              size == kKeyBytes;
  EVP_PKEY_free(key);
  BIO_free(memory);
  // What is left in the thread's queue of errors would confuse the next user of OpenSSL.
  ERR_clear_error();
  if (!good) throw std::invalid_argument("cannot use a trusted key: it is no Ed25519 key in PEM");
  return raw;
}

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string public_key(const std::string& given) {
  if (given.size() == kKeyBytes) return given;
  std::string text = given.substr(0, given.find_last_not_of(" \r\n") + 1);
  if (text.find("-----BEGIN PUBLIC KEY-----") != std::string::npos) return from_pem(text);
  std::string raw;
  for (std::size_t at = 0; text.size() == 2 * kKeyBytes && at < text.size(); at += 2) {
    int high = digit(text[at]), low = digit(text[at + 1]);
    if (high < 0 || low < 0) break;
    raw += static_cast<char>(high << 4 | low);
  }
  if (raw.size() != kKeyBytes) {
    throw std::invalid_argument(
        "cannot use a trusted key: expected PEM, 64 hexadecimal digits or 32 bytes");
  }
  return raw;
}

}  // namespace wasmkiln
