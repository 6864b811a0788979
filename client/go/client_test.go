package wasmkiln

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

func TestArgumentsOfNoUse(t *testing.T) {
	for address, options := range map[string]Options{
		"127.0.0.1": {}, "127.0.0.1:": {}, "127.0.0.1:0": {}, "::1": {}, "http://127.0.0.1:50051": {},
		"kiln.example:1": {Token: "a"}, "127.0.0.1.example:1": {Token: "a"}, "unix:/a": {Timeout: -1},
		"[::1]:1": {TrustedKeys: []ed25519.PublicKey{{1}}},
	} {
		if _, err := New(address, options); err == nil {
			t.Error(address)
		}
	}
	for _, address := range []string{
		"", "127.0.0.1:50051", "[::1]:1", "kiln:65535", "unix:/run/kiln", "unix:///run/kiln",
		"dns:kiln.example:50051", "dns:///kiln.example:50051", "passthrough:///kiln:50051",
	} {
		client, err := New(address, Options{})
		if err != nil {
			t.Fatal(address, err)
		}
		if _, err = client.CompileDigest(context.Background(), "00", CompileOptions{}); err == nil {
			t.Error("took a digest of one byte")
		}
		client.Close()
	}
}

// write makes a file, and its folder.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestKeysLessThoseThatAreRevoked(t *testing.T) {
	one, _, _ := ed25519.GenerateKey(nil)
	two, _, _ := ed25519.GenerateKey(nil)
	folder := t.TempDir()
	trusted, revocation := filepath.Join(folder, "trusted"), filepath.Join(folder, "revoked", "one.json")
	file := filepath.Join(trusted, "one.pem")
	write(t, file, hex.EncodeToString(one))
	write(t, filepath.Join(trusted, "two.pem"), hex.EncodeToString(two))
	if keys, err := ReadKeys(trusted); err != nil || len(keys) != 2 {
		t.Error(keys, err)
	}
	write(t, revocation, `{"key_id": "`+keyID(one)+`", "since_ms": 0}`)
	keys, err := ReadKeys(file, trusted)
	if err != nil || len(keys) != 1 || !keys[0].Equal(two) {
		t.Error(keys, err)
	}
	write(t, revocation, "{}")
	if _, err := ReadKeys(trusted); err == nil {
		t.Error("ignored a revocation that cannot be read")
	}
	if _, err := ParseKeys("-----BEGIN PRIVATE KEY-----"); err == nil || strings.Contains(err.Error(), "PRIVATE") {
		t.Error(err)
	}
}

// silent is a daemon that never answers a Compile.
type silent struct {
	pb.UnimplementedModuleServiceServer
}

func (silent) Compile(_ *pb.CompileRequest, stream pb.ModuleService_CompileServer) error {
	<-stream.Context().Done()
	return stream.Context().Err()
}

func TestAContextEndsACall(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterModuleServiceServer(server, silent{})
	go server.Serve(listener)
	defer server.Stop()
	client, err := New(listener.Addr().String(), Options{Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Compile(context.Background(), nil, CompileOptions{})
	if !errors.Is(err, ErrDeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cancel()
	_, err = client.Compile(ctx, nil, CompileOptions{})
	var failure *Error
	if !errors.Is(err, context.Canceled) || !errors.As(err, &failure) || len(failure.RequestID) != 16 {
		t.Error(err)
	}
}

func TestAFileThatSomebodyWritesTo(t *testing.T) {
	module, fingerprint := strings.Repeat("a", 64), strings.Repeat("b", 64)
	path := filepath.Join(t.TempDir(), fingerprint, module[:2], module, "artifact")
	write(t, path, "code")
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	header := &pb.ArtifactHeader{
		ModuleSha256: module, Fingerprint: fingerprint, SizeBytes: 4, ArtifactSha256: sha256Hex([]byte("code")),
		HostFile: &pb.HostFile{Path: path, Device: stat.Dev, Inode: stat.Ino},
	}
	artifact := &Artifact{Header: header, file: openHostFile(header)}
	defer artifact.Close()
	if content, err := artifact.Bytes(); err != nil || string(content) != "code" || artifact.CheckUnchanged() != nil {
		t.Fatal(content, err)
	}
	write(t, path, "evil")
	if _, err := artifact.Bytes(); !errors.Is(err, ErrArtifactMismatch) {
		t.Errorf("took other bytes: %v", err)
	}
	if err := os.Chtimes(path, time.Now().Add(time.Hour), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := artifact.CheckUnchanged(); !errors.Is(err, ErrArtifactMismatch) {
		t.Errorf("took a file that changed: %v", err)
	}
}
