#include "local.h"

#include <arpa/inet.h>

#include <stdexcept>

namespace wasmkiln {
namespace {

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

}  // namespace

void check_address(const std::string& address) {
  for (const char* scheme : {"http://", "https://", "grpc://", "grpcs://", "tcp://"}) {
    if (starts_with(address, scheme)) {
      throw std::invalid_argument("an address is host:port or unix:/path: leave out the " +
                                  std::string(scheme) + " in front");
    }
  }
  for (const char* named : {"unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "xds:"}) {
    if (starts_with(address, named)) return;
  }
  // Any other scheme is one of a resolver that the program has registered.
  if (address.find("://") != std::string::npos) return;
  std::size_t colon = address.rfind(':');
  std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  bool is_number = !port.empty() && port.size() <= 5 &&
                   port.find_first_not_of("0123456789") == std::string::npos;
  int number = is_number ? std::stoi(port) : 0;
  if (colon == 0 || number < 1 || number > 65535) {
    throw std::invalid_argument(
        "an address is host:port or unix:/path, with a port from 1 to 65535, not " + address);
  }
}

bool is_local(const std::string& address) {
  if (starts_with(address, "unix:") || starts_with(address, "unix-abstract:")) return true;
  std::string host = address;
  for (const char* scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (starts_with(host, scheme)) {
      host = host.substr(std::string(scheme).size());
      break;
    }
  }
  if (host.find(',') != std::string::npos) return false;  // several daemons
  if (starts_with(host, "[")) {
    host = host.substr(1, host.find(']') - 1);
  } else if (host.find(':') == host.rfind(':')) {
    host = host.substr(0, host.find(':'));
  }
  in_addr four;
  if (inet_pton(AF_INET, host.c_str(), &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
  const std::string below = ".localhost";
  return host == "localhost" || host == "::1" ||
         (host.size() > below.size() &&
          host.compare(host.size() - below.size(), below.size(), below) == 0);
}

}  // namespace wasmkiln
