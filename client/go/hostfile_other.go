//go:build !linux

package wasmkiln

import (
	"errors"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

// hostFile is for Linux only, as the daemon is.
type hostFile struct{}

func openHostFile(*pb.ArtifactHeader) (*hostFile, error) {
	return nil, errors.New("this system has no host store")
}

func (*hostFile) read(uint64) ([]byte, error) { return nil, errors.ErrUnsupported }
func (*hostFile) young() bool                 { return true }
func (*hostFile) unchanged() error            { return errors.ErrUnsupported }
func (*hostFile) path() string                { return "" }
func (*hostFile) close() error                { return nil }
