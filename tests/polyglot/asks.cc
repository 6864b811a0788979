// What Asks.java does, in C++.
#include <wasmkiln/client.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>

namespace {

using Flags = std::map<std::string, std::string>;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void say(const std::string& first, const std::string& second, const std::string& third,
         const std::string& fourth, std::string last) {
  std::replace(last.begin(), last.end(), '\n', ' ');
  std::cout << first << '\t' << second << '\t' << third << '\t' << fourth << '\t' << last
            << std::endl;
}

void ask(wasmkiln::Client& client, const std::string& module, Flags& flags) {
  wasmkiln::CompileOptions options;
  options.engine = flags["--engine"];
  if (flags.count("--timeout-ms")) {
    options.timeout = std::chrono::milliseconds(std::stoll(flags["--timeout-ms"]));
  }
  try {
    wasmkiln::Artifact artifact = flags.count("--digest")
                                      ? client.compile_digest(flags["--digest"], options)
                                      : client.compile(module, options);
    const auto& header = artifact.header();
    if (flags.count("--out")) {
      std::ofstream(flags["--out"], std::ios::binary) << artifact.bytes();
    }
    say("compiled", wasmkiln::v1::Origin_Name(header.origin()), header.engine().id(),
        std::to_string(artifact.bytes().size()), header.module_sha256());
  } catch (const wasmkiln::WasmkilnError& refused) {
    auto cause = refused.metadata().find("cause");
    say(refused.reason(), refused.request_id(),
        refused.retry_after() ? std::to_string(refused.retry_after()->count()) : "",
        cause == refused.metadata().end() ? "" : cause->second, refused.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags = {{"--times", "1"}};
  for (int at = 3; at + 1 < argc; at += 2) flags[argv[at]] = argv[at + 1];
  try {
    wasmkiln::ClientOptions options;
    if (flags.count("--key")) options.trusted_keys = wasmkiln::read_keys(flags["--key"]);
    if (flags.count("--ca")) options.tls = wasmkiln::Tls{read(flags["--ca"]), "", ""};
    if (flags.count("--token-file")) options.token_file = flags["--token-file"];
    wasmkiln::Client client(argv[1], options);
    for (int left = std::stoi(flags["--times"]); left > 0; --left) {
      ask(client, read(argv[2]), flags);
    }
  } catch (const std::invalid_argument& unusable) {
    say("unusable", "", "", "", unusable.what());
  }
}
