#include "header_checks.h"

#include <map>
#include <string_view>

#include "status.h"

namespace wasmkiln {
namespace {

using std::string_literals::operator""s;

// By an engine's name: the setting and the value that choose its fast compiler.
const std::map<std::string, std::pair<std::string, std::string>>& fast_compilers() {
  static const std::map<std::string, std::pair<std::string, std::string>> compilers = {
      {"wasmtime", {"strategy", "winch"}}, {"wasmer", {"compiler", "singlepass"}}};
  return compilers;
}

// Settings that artifacts of earlier daemons do not state, and what these artifacts have.
std::string unstated(const std::string& setting) {
  if (setting == "strategy" || setting == "compiler") return "cranelift";
  return setting == "collector" ? "drc" : "";
}

void compare(const std::string& what, const std::string& asked, const std::string& got) {
  if (asked != got) {
    throw_mismatch("asked for " + what + " " + quoted(asked) + ", got " +
                   (got.empty() ? "none" : quoted(got)));
  }
}

void check_settings(const v1::CompileRequest& request, const v1::ArtifactHeader& header) {
  const auto& asked = request.settings();
  for (const auto& [name, value] : asked) {
    auto found = header.settings().find(name);
    compare("setting " + quoted(name), value,
            found == header.settings().end() ? unstated(name) : found->second);
  }
  // A setting that the call did not name has to have the engine's default.
  for (const auto& [name, value] : header.changed_settings()) {
    auto found = asked.find(name);
    compare("setting " + quoted(name),
            found == asked.end() ? "as the engine has it" : found->second, value);
  }
  auto fast = fast_compilers().find(header.engine().name());
  bool is_fast = false;
  if (fast != fast_compilers().end()) {
    auto found = asked.find(fast->second.first);
    is_fast = found != asked.end() && found->second == fast->second.second;
  }
  compare("an artifact whose is_fast is", is_fast ? "true" : "false",
          header.is_fast() ? "true" : "false");
}

}  // namespace

v1::Kind kind_of(std::string_view module) {
  std::string_view preamble = module.substr(0, 8);
  if (preamble == "\0asm\1\0\0\0"s) return v1::KIND_CORE_MODULE;
  if (preamble == "\0asm\x0d\0\1\0"s) return v1::KIND_COMPONENT;
  return v1::KIND_UNSPECIFIED;
}

void check_header(const v1::CompileRequest& request, const std::string& module_sha256,
                  v1::Kind kind, const v1::ArtifactHeader& header) {
  const std::string& name = header.engine().name();
  std::string id = name + "-" + header.engine().version();
  compare("an artifact of module", module_sha256, header.module_sha256());
  if (!request.engine().empty() && request.engine() != name) {
    compare("engine", request.engine(), id);
  }
  compare("an engine whose id is", id, header.engine().id());
  if (!request.target().empty()) compare("target", request.target(), header.target());
  if (!request.cpu().empty()) compare("cpu", request.cpu(), header.cpu());
  check_settings(request, header);
  if (kind != v1::KIND_UNSPECIFIED) {
    compare("an artifact of kind", v1::Kind_Name(kind), v1::Kind_Name(header.kind()));
  }
  if (header.has_host_file() && !request.accept_host_file()) {
    throw_mismatch("asked for the artifact's bytes, got a file's name");
  }
  if (header.inline_artifact().size() > request.inline_limit_bytes()) {
    throw_mismatch("got more bytes in the header than asked for");
  }
  if (!header.content_encoding().empty()) {
    throw_mismatch("got bytes in an encoding that was not asked for: " +
                   quoted(header.content_encoding()));
  }
}

}  // namespace wasmkiln
