#include "host_file.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <set>
#include <utility>
#include <vector>

#include "crypto.h"

namespace wasmkiln {
namespace {

constexpr int kRead = O_RDONLY | O_CLOEXEC | O_NOFOLLOW;
constexpr mode_t kSharedWrite = S_IWGRP | S_IWOTH;
constexpr std::size_t kReadBytes = 256 * 1024;
constexpr time_t kRacySeconds = 1;

// A descriptor that is closed unless it is taken.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.take()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int take() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

std::string why() { return std::strerror(errno); }

// Whether nobody but root and `owner` can put another folder into this one's place. A sticky
// folder does not help: anybody could have made the store in it.
bool only_root_or(uid_t owner, const std::string& directory, const struct stat& opened) {
  char resolved[PATH_MAX];
  struct stat status;
  if (!realpath(directory.c_str(), resolved) || stat(resolved, &status) != 0) return false;
  if (status.st_dev != opened.st_dev || status.st_ino != opened.st_ino) return false;
  for (std::string folder = resolved; folder != "/";) {
    folder = folder.substr(0, std::max<std::size_t>(1, folder.rfind('/')));
    if (stat(folder.c_str(), &status) != 0) return false;
    if (status.st_uid != 0 && status.st_uid != owner) return false;
    if (status.st_mode & kSharedWrite) return false;
  }
  return true;
}

struct stat checked(int fd, const std::set<uid_t>& owners, const std::string& what) {
  struct stat status;
  if (fd < 0) throw Refused("cannot open " + what + ": " + why());
  if (fstat(fd, &status) != 0) throw Refused("cannot look at " + what + ": " + why());
  if (!owners.count(status.st_uid)) {
    throw Refused(what + " belongs to the user " + std::to_string(status.st_uid) +
                  ", who is not trusted");
  }
  if (status.st_mode & kSharedWrite) {
    throw Refused("users other than the owner can write to " + what);
  }
  return status;
}

// Cut the last part off a path, and return it.
std::string cut(std::string& path) {
  std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) throw Refused("the daemon named no path of a host store");
  std::string name = path.substr(slash + 1);
  path.resize(slash);
  return name;
}

}  // namespace

Artifact::OpenFile::~OpenFile() { close(descriptor); }

std::shared_ptr<const Artifact::OpenFile> Artifact::OpenFile::open(
    const v1::ArtifactHeader& header) {
  std::string directory = header.host_file().path();
  std::string file = cut(directory), module = cut(directory), start = cut(directory),
              fingerprint = cut(directory);
  if (file != "artifact" || !is_digest(module) || module != header.module_sha256() ||
      start != module.substr(0, 2) || fingerprint != header.fingerprint() ||
      directory.empty() || directory[0] != '/') {
    throw Refused("the daemon named a path that is no entry of a host store");
  }
  // The store itself may be a link; what lies in it may not.
  Descriptor parent(::open(directory.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY));
  struct stat status;
  if (parent.get() < 0 || fstat(parent.get(), &status) != 0) {
    throw Refused("cannot open a host store at " + directory + ": " + why());
  }
  std::set<uid_t> owners = {0, geteuid()};
  if (!owners.count(status.st_uid) && only_root_or(status.st_uid, directory, status)) {
    owners.insert(status.st_uid);
  }
  checked(parent.get(), owners, "the folder " + directory);
  for (const std::string& name : {fingerprint, start, module}) {
    Descriptor next(openat(parent.get(), name.c_str(), kRead | O_DIRECTORY));
    checked(next.get(), owners, "the folder " + name);
    parent = std::move(next);
  }
  // A pipe in place of the file must not make the caller wait.
  Descriptor opened(openat(parent.get(), file.c_str(), kRead | O_NONBLOCK));
  status = checked(opened.get(), owners, "the file of the artifact");
  if (!S_ISREG(status.st_mode)) throw Refused("the artifact is not a regular file");
  if (status.st_nlink != 1) throw Refused("the artifact's file has several names");
  if (status.st_dev != header.host_file().device() ||
      status.st_ino != header.host_file().inode()) {
    throw Refused("the file is another one than the daemon's");
  }
  if (static_cast<std::uint64_t>(status.st_size) != header.size_bytes()) {
    throw Refused("the file's size is not that of its header");
  }
  return std::make_shared<const OpenFile>(opened.take(), status);
}

std::string Artifact::OpenFile::read() const {
  std::string content(status.st_size, '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    ssize_t got = pread(descriptor, content.data() + done, content.size() - done, done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw Refused("a file changed while it was read");
    done += got;
  }
  return content;
}

std::string Artifact::OpenFile::sha256() const {
  Sha256 digest;
  std::vector<char> piece(kReadBytes);
  for (off_t at = 0; at < status.st_size;) {
    ssize_t got = pread(descriptor, piece.data(), piece.size(), at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw Refused("a file changed while it was read");
    digest.add(piece.data(), got);
    at += got;
  }
  return digest.hex();
}

bool Artifact::OpenFile::changed() const {
  struct stat now;
  return fstat(descriptor, &now) != 0 || now.st_size != status.st_size ||
         now.st_mtim.tv_sec != status.st_mtim.tv_sec ||
         now.st_mtim.tv_nsec != status.st_mtim.tv_nsec ||
         now.st_ctim.tv_sec != status.st_ctim.tv_sec ||
         now.st_ctim.tv_nsec != status.st_ctim.tv_nsec;
}

bool Artifact::OpenFile::is_racy() const {
  time_t last = std::max(status.st_mtim.tv_sec, status.st_ctim.tv_sec);
  return std::time(nullptr) - last <= kRacySeconds;
}

}  // namespace wasmkiln
