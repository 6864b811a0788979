// wasmkiln-example ADDRESS MODULE.wasm [--key KEY.pem] [--engine ID] [--out FILE]
//                  [--ca CA.pem] [--token-file FILE] [--digest SHA256] [--bytes]
#include <wasmkiln/client.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <map>

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void compile_twice(wasmkiln::Client& kiln, const std::string& module,
                   const wasmkiln::CompileOptions& options, const std::string& out) {
  for (int call = 0; call < 2; ++call) {
    wasmkiln::Artifact artifact = kiln.compile(module, options);
    const auto& header = artifact.header();
    std::string from = artifact.origin() + (artifact.is_file() ? ", a file of the host store" : "");
    std::cout << "cpp compiled sha256:" << header.module_sha256() << " with "
              << header.engine().id() << ", " << header.size_bytes() << " bytes, from " << from
              << std::endl;
    if (!out.empty()) std::ofstream(out, std::ios::binary) << artifact.bytes();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: wasmkiln-example ADDRESS MODULE.wasm [--key KEY.pem] [--engine ID]\n";
    return 2;
  }
  std::map<std::string, std::string> flags;
  for (int at = 3; at < argc; ++at) {
    std::string name = argv[at];
    flags[name] = name == "--bytes" || at + 1 == argc ? "yes" : argv[++at];
  }
  try {
    wasmkiln::ClientOptions client;
    if (flags.count("--key")) client.trusted_keys = {read_file(flags["--key"])};
    if (flags.count("--ca")) client.tls = wasmkiln::Tls{read_file(flags["--ca"]), "", ""};
    if (flags.count("--token-file")) client.token_file = flags["--token-file"];
    client.host_store = !flags.count("--bytes");
    wasmkiln::CompileOptions options;
    options.engine = flags.count("--engine") ? flags["--engine"] : "wasmtime";
    wasmkiln::Client kiln(argv[1], client);
    if (flags.count("--digest")) {
      kiln.compile_digest(flags["--digest"], options);
      return 0;
    }
    compile_twice(kiln, read_file(argv[2]), options, flags["--out"]);
    // A preamble and an unknown section: no engine takes it.
    kiln.compile(std::string("\0asm\1\0\0\0\x7f\0", 10), options);
  } catch (const wasmkiln::WasmkilnError& error) {
    std::cout << "cpp error " << error.reason() << ": " << error.what();
    if (error.retry_after()) std::cout << " (retry after " << error.retry_after()->count() << " ms)";
    std::cout << std::endl;
    return error.reason() == "MODULE_INVALID" ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}
