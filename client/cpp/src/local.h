// What an address says by itself.
#pragma once

#include <string>

namespace wasmkiln {

// Throw std::invalid_argument for an address that gRPC would take for something else: without a
// port it connects to 443.
void check_address(const std::string& address);

bool is_local(const std::string& address);

}  // namespace wasmkiln
