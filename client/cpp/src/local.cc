#include "local.h"

#include <arpa/inet.h>

namespace wasmkiln {
namespace {

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

}  // namespace

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
  return host == "localhost" || host == "::1";
}

}  // namespace wasmkiln
