// Ends a call that waits for a daemon, when a line comes, and begins another too late: ends ADDRESS
#include <wasmkiln/client.h>

#include <iostream>
#include <thread>

int main(int, char** argv) {
  wasmkiln::CompileOptions how;
  how.cancellation = std::make_shared<wasmkiln::Cancellation>();
  wasmkiln::Client kiln(argv[1]);
  std::thread other([&] {
    std::cin.get();  // the call has arrived
    how.cancellation->cancel();
  });
  for (int call = 0; call < 2; ++call) {
    try {
      kiln.compile("a module", how);
      std::cout << "took what nobody sent" << std::endl;
    } catch (const wasmkiln::WasmkilnError& ended) {
      std::cout << "code " << ended.code() << std::endl;
    }
  }
  other.join();
}
