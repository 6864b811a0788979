// What the client makes of arguments of no use, and of a call that another thread ends:
// checks ADDRESS MODULE.wasm WRONG_KEY.pem SILENT_ADDRESS
#include <wasmkiln/client.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <thread>

namespace {

std::string read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void check(bool is_true, const std::string& otherwise) {
  if (is_true) return;
  std::cout << otherwise << std::endl;
  std::exit(1);
}

void unusable(const std::string& what, const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return;
  }
  check(false, "took an argument of no use: " + what);
}

}  // namespace

int main(int, char** argv) {
  for (const char* address : {"", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ":1", "kiln:grpc",
                              "http://127.0.0.1:1", "tcp://127.0.0.1:1"}) {
    unusable(address, [&] { wasmkiln::Client kiln(address); });
  }
  for (const char* address : {"127.0.0.1:50051", "[::1]:1", "dns:///kiln.example:50051",
                              "unix:/run/kiln", "ipv4:127.0.0.1:1,127.0.0.1:2"}) {
    wasmkiln::Client kiln(address);
  }
  wasmkiln::ClientOptions both;
  both.token = both.token_file = "token";
  unusable("token and token_file", [&] { wasmkiln::Client kiln("127.0.0.1:1", both); });

  std::string module = read(argv[2]);
  wasmkiln::ClientOptions strict;
  strict.trusted_keys = {read(argv[3])};
  wasmkiln::CompileOptions how;
  how.engine = "wasmtime-50.0.1";
  try {
    wasmkiln::Client(argv[1], strict).compile(module, how);
    check(false, "took an artifact that nobody trusted signed");
  } catch (const wasmkiln::AttestationInvalid& refused) {
    check(refused.request_id().size() == 16, "a refused artifact names no request");
  }

  // One that waits for the daemon, and one that begins too late.
  how.cancellation = std::make_shared<wasmkiln::Cancellation>();
  wasmkiln::Client kiln(argv[4]);
  std::thread other([&] {
    std::cin.get();  // the call has arrived
    how.cancellation->cancel();
  });
  for (int call = 0; call < 2; ++call) {
    try {
      kiln.compile(module, how);
      check(false, "took what nobody sent");
    } catch (const wasmkiln::WasmkilnError& ended) {
      check(ended.code() == 1, std::string("expected CANCELLED, got ") + ended.what());
    }
  }
  other.join();
  std::cout << "cpp checks what it should" << std::endl;
}
