// What Asks.java does, in C++.
#include <wasmkiln/client.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <map>
#include <thread>

namespace {

std::map<std::string, std::string> flags;
auto cancellation = std::make_shared<wasmkiln::Cancellation>();

void say(const std::string& first, const std::string& second, const std::string& third,
         const std::string& fourth, std::string last) {
  std::replace(last.begin(), last.end(), '\n', ' ');
  std::cout << first << '\t' << second << '\t' << third << '\t' << fourth << '\t' << last
            << std::endl;
}

void ask(const std::string& address, const std::string& module) {
  wasmkiln::ClientOptions options;
  if (flags.count("--key")) options.trusted_keys = wasmkiln::read_keys(flags["--key"]);
  if (flags.count("--ca")) options.tls = wasmkiln::Tls{wasmkiln::read_file(flags["--ca"]), "", ""};
  options.token_file = flags["--token-file"];
  wasmkiln::Client client(address, options);
  wasmkiln::CompileOptions how;
  how.engine = flags["--engine"];
  how.cancellation = cancellation;
  how.skip_cache_lookup = flags.count("--fresh");
  how.accept_fast = flags.count("--accept-fast");
  if (flags.count("--compatibility")) how.compatibility = wasmkiln::read_file(flags["--compatibility"]);
  if (flags.count("--timeout-ms")) {
    how.timeout = std::chrono::milliseconds(std::stoll(flags["--timeout-ms"]));
  }
  if (flags.count("--load")) {
    how.is_background = true;
    auto loaded = client.load(module, how);
    return say("loaded", "", loaded.engine(), "", loaded.sha256());
  }
  if (flags.count("--missing")) {
    wasmkiln::v1::ArtifactKey key;
    key.set_module_sha256(flags["--missing"]);
    key.set_engine(how.engine);
    return say("missing", "", "", std::to_string(client.find_missing({key}, how).size()), "");
  }
  wasmkiln::Artifact artifact = flags.count("--digest")
                                    ? client.compile_digest(flags["--digest"], how)
                                    : client.compile(module, how);
  const auto& header = artifact.header;
  if (flags.count("--out")) {
    std::ofstream(flags["--out"], std::ios::binary) << artifact.bytes;
  }
  say("compiled", wasmkiln::v1::Origin_Name(header.origin()), header.engine().id(),
      std::to_string(artifact.bytes.size()), header.module_sha256());
}

}  // namespace

int main(int argc, char** argv) {
  for (int at = 3; at + 1 < argc; at += 2) flags[argv[at]] = argv[at + 1];
  if (flags.count("--pause")) {
    std::thread([] {
      std::cin.get();
      cancellation->cancel();
    }).detach();
  }
  for (int left = flags.count("--times") ? std::stoi(flags["--times"]) : 1; left > 0; --left) {
    try {
      ask(argv[1], wasmkiln::read_file(argv[2]));
    } catch (const wasmkiln::WasmkilnError& refused) {
      const auto& details = refused.details();
      auto cause = details.metadata.find("cause");
      say(details.code == 1 ? "cancelled" : details.reason, details.request_id,
          details.retry_after ? std::to_string(details.retry_after->count()) : "",
          cause == details.metadata.end() ? "" : cause->second, refused.what());
    } catch (const std::invalid_argument& unusable) {
      say("unusable", "", "", "", unusable.what());
    }
  }
}
