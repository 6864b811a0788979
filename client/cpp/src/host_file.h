// Opens a file of the daemon's host store, as docs/how-to/map-artifacts.md says.
#pragma once

#include <sys/stat.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "wasmkiln/client.h"

namespace wasmkiln {

// Why a file does not count. The client then asks for the bytes.
class Refused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Artifact::OpenFile {
  int descriptor;
  struct stat status;

  OpenFile(int opened, const struct stat& found) : descriptor(opened), status(found) {}
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile();

  // Throws Refused.
  std::string read() const;
  std::string sha256() const;
  // Whether it was written to since it was opened.
  bool changed() const;
  // Whether it is so young that it may change without a trace in its times.
  bool is_racy() const;

  // Open the file that a header names, which was compared with the call. Throws Refused.
  static std::shared_ptr<const OpenFile> open(const v1::ArtifactHeader& header);
};

}  // namespace wasmkiln
