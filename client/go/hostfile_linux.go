package wasmkiln

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

const (
	readFlags   = syscall.O_RDONLY | syscall.O_CLOEXEC
	folderFlags = readFlags | syscall.O_DIRECTORY
	// A pipe in place of a file must not make the caller wait.
	fileFlags = readFlags | syscall.O_NOFOLLOW | syscall.O_NONBLOCK

	sharedWrite = 0o022
)

// hostFile is an open file of the host store that was found to be the daemon's.
type hostFile struct {
	file *os.File
	stat syscall.Stat_t
}

// openHostFile opens the file that a header names, as docs/how-to/map-artifacts.md says: each folder relative
// to the one before and through no link, and all owned by somebody whom this process trusts.
func openHostFile(header *pb.ArtifactHeader) (*hostFile, error) {
	folder, names, ok := entryPath(header)
	if !ok {
		return nil, errors.New("the daemon named a path that is not one of a host store")
	}
	descriptor, err := syscall.Open(folder, folderFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", folder, err)
	}
	defer func() { _ = syscall.Close(descriptor) }()
	var stat syscall.Stat_t
	if err := syscall.Fstat(descriptor, &stat); err != nil {
		return nil, err
	}
	owners := trustedOwners(folder, &stat)
	if err := owners.check(&stat, folder); err != nil {
		return nil, err
	}
	for _, name := range names[:len(names)-1] {
		below, err := syscall.Openat(descriptor, name, folderFlags|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot open the folder %s: %w", name, err)
		}
		_ = syscall.Close(descriptor)
		descriptor = below
		if err := syscall.Fstat(descriptor, &stat); err != nil {
			return nil, err
		}
		if err := owners.check(&stat, name); err != nil {
			return nil, err
		}
	}
	opened, err := syscall.Openat(descriptor, names[len(names)-1], fileFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the artifact: %w", err)
	}
	file := &hostFile{file: os.NewFile(uintptr(opened), "artifact")}
	if err := file.check(owners, header); err != nil {
		_ = file.close()
		return nil, err
	}
	return file, nil
}

// look notes the file's state, with which unchanged compares.
func (f *hostFile) look() error { return syscall.Fstat(int(f.file.Fd()), &f.stat) }

func (f *hostFile) check(owners owners, header *pb.ArtifactHeader) error {
	if err := f.look(); err != nil {
		return err
	}
	named := header.GetHostFile()
	switch {
	case f.stat.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return errors.New("the artifact is not a regular file")
	case f.stat.Nlink != 1:
		return fmt.Errorf("the artifact has %d names", f.stat.Nlink)
	case f.stat.Dev != named.GetDevice() || f.stat.Ino != named.GetInode():
		return errors.New("the path leads to another file here than the daemon's")
	case f.stat.Size == 0 || uint64(f.stat.Size) != header.GetSizeBytes():
		return errors.New("the artifact does not have the size that its header says")
	}
	return owners.check(&f.stat, "the artifact")
}

func (f *hostFile) read(size uint64) ([]byte, error) {
	content := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f.file, 0, int64(size)), content); err != nil {
		return nil, fmt.Errorf("cannot read the artifact: %w", err)
	}
	return content, nil
}

// young reports whether the file may change without a trace in its times, which are coarse.
func (f *hostFile) young() bool {
	return time.Now().Unix()-max(f.stat.Mtim.Sec, f.stat.Ctim.Sec) <= 1
}

// unchanged returns an error if somebody wrote to the file since it was opened.
func (f *hostFile) unchanged() error {
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	now, ok := info.Sys().(*syscall.Stat_t)
	if !ok || now.Size != f.stat.Size || now.Mtim != f.stat.Mtim || now.Ctim != f.stat.Ctim {
		return errors.New("the file changed while it was read")
	}
	return nil
}

func (f *hostFile) path() string { return fmt.Sprintf("/proc/self/fd/%d", f.file.Fd()) }

func (f *hostFile) close() error { return f.file.Close() }

// owners are the users whose files count.
type owners map[uint32]bool

// trustedOwners returns root, this process's user and, if nobody but root and that user can put
// another folder into its place, the owner of the store's folder.
func trustedOwners(folder string, stat *syscall.Stat_t) owners {
	trusted := owners{0: true, uint32(os.Geteuid()): true}
	if !trusted[stat.Uid] && onlyRootOr(stat.Uid, folder, stat) {
		trusted[stat.Uid] = true
	}
	return trusted
}

func (o owners) check(stat *syscall.Stat_t, what string) error {
	if !o[stat.Uid] {
		return fmt.Errorf("%s belongs to the user %d, who is not trusted", what, stat.Uid)
	}
	if stat.Mode&sharedWrite != 0 {
		return fmt.Errorf("users other than the owner can write to %s", what)
	}
	return nil
}

func onlyRootOr(owner uint32, folder string, stat *syscall.Stat_t) bool {
	resolved, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return false
	}
	var above syscall.Stat_t
	if syscall.Stat(resolved, &above) != nil || above.Dev != stat.Dev || above.Ino != stat.Ino {
		return false
	}
	for resolved != "/" {
		resolved = filepath.Dir(resolved)
		// A sticky folder does not help: anybody could have made the store in it.
		if syscall.Stat(resolved, &above) != nil ||
			(above.Uid != 0 && above.Uid != owner) || above.Mode&sharedWrite != 0 {
			return false
		}
	}
	return true
}
