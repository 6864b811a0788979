package wasmkiln

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

const sharedWrite = 0o022

// Opens the file that a header names, as docs/how-to/host-store.md says: each folder relative to
// the one before and through no link, and all owned by somebody whom this process trusts.
func init() {
	openHostFile = func(header *pb.ArtifactHeader) *hostFile {
		path, module := header.GetHostFile().GetPath(), header.GetModuleSha256()
		names := []string{header.GetFingerprint(), module[:2], module, "artifact"}
		tail := "/" + strings.Join(names, "/")
		folder, err := filepath.EvalSymlinks(strings.TrimSuffix(path, tail))
		if err != nil || filepath.Clean(path) != path || !filepath.IsAbs(path) ||
			!strings.HasSuffix(path, tail) || !isDigest.MatchString(header.GetFingerprint()) {
			return nil
		}
		owners := ownersOf(folder)
		file, stat := owners.open(folder, syscall.O_DIRECTORY)
		for _, name := range names {
			if file == nil {
				return nil
			}
			flags := syscall.O_NOFOLLOW | syscall.O_DIRECTORY
			if name == "artifact" {
				// A pipe in place of a file must not make the caller wait.
				flags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK
			}
			// Through this link, Linux opens relative to the descriptor.
			below := fmt.Sprintf("/proc/self/fd/%d/%s", file.Fd(), name)
			above := file
			file, stat = owners.open(below, flags)
			_ = above.Close()
		}
		if file == nil || !isTheDaemons(stat, header) {
			_ = file.Close() // nil is refused
			return nil
		}
		return opened(file, stat)
	}
}

func isTheDaemons(stat *syscall.Stat_t, header *pb.ArtifactHeader) bool {
	named := header.GetHostFile()
	return stat.Mode&syscall.S_IFMT == syscall.S_IFREG && stat.Nlink == 1 &&
		stat.Dev == named.GetDevice() && stat.Ino == named.GetInode() &&
		stat.Size > 0 && uint64(stat.Size) == header.GetSizeBytes()
}

func opened(file *os.File, stat *syscall.Stat_t) *hostFile {
	changed := time.Unix(stat.Mtim.Unix())
	if inode := time.Unix(stat.Ctim.Unix()); inode.After(changed) {
		changed = inode
	}
	return &hostFile{File: file, changed: changed, hasChanged: func() bool {
		var now syscall.Stat_t
		err := syscall.Fstat(int(file.Fd()), &now)
		return err != nil || now.Size != stat.Size || now.Mtim != stat.Mtim || now.Ctim != stat.Ctim
	}}
}

// owners are the users whose files count.
type owners map[uint32]bool

// ownersOf returns root, this process's user and, if nobody but root and that user can put another
// folder into its place, the owner of the store's folder.
func ownersOf(folder string) owners {
	trusted := owners{0: true, uint32(os.Geteuid()): true}
	var stat, above syscall.Stat_t
	if syscall.Stat(folder, &stat) != nil {
		return trusted
	}
	for folder != "/" {
		folder = filepath.Dir(folder)
		// A sticky folder does not help: anybody could have made the store in it.
		if syscall.Stat(folder, &above) != nil ||
			(above.Uid != 0 && above.Uid != stat.Uid) || above.Mode&sharedWrite != 0 {
			return trusted
		}
	}
	trusted[stat.Uid] = true
	return trusted
}

// open opens a file or folder. It returns nil unless a trusted user owns it and nobody else can
// write to it.
func (o owners) open(path string, flags int) (*os.File, *syscall.Stat_t) {
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, nil
	}
	var stat syscall.Stat_t
	if syscall.Fstat(int(file.Fd()), &stat) != nil || !o[stat.Uid] || stat.Mode&sharedWrite != 0 {
		_ = file.Close()
		return nil, nil
	}
	return file, &stat
}
