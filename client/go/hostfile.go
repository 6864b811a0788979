package wasmkiln

import (
	"path/filepath"
	"strings"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

// uselessFile says why a file of the host store does not count. The client then asks for bytes.
type uselessFile struct{ why error }

func (u *uselessFile) Error() string { return "cannot use the daemon's file: " + u.why.Error() }

// entryPath returns the store's folder and the names below it of the file that a header names,
// and whether the file is where a store has this artifact.
func entryPath(header *pb.ArtifactHeader) (folder string, names []string, ok bool) {
	path, module := header.GetHostFile().GetPath(), header.GetModuleSha256()
	names = []string{header.GetFingerprint(), module[:2], module, "artifact"}
	tail := "/" + strings.Join(names, "/")
	ok = filepath.IsAbs(path) && filepath.Clean(path) == path && strings.HasSuffix(path, tail) &&
		!strings.ContainsAny(header.GetFingerprint(), "/.") && header.GetFingerprint() != ""
	return strings.TrimSuffix(path, tail), names, ok
}
