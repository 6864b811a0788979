// Whether an address is on this machine.
#pragma once

#include <string>

namespace wasmkiln {

bool is_local(const std::string& address);

}  // namespace wasmkiln
