package wasmkiln

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

func TestAnAddressHasAPort(t *testing.T) {
	for _, address := range []string{
		"127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "localhost:grpc", "::1",
		"http://127.0.0.1:50051", "tcp://127.0.0.1:50051",
	} {
		if _, err := New(address, Options{}); err == nil || !strings.Contains(err.Error(), "an address is") {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{
		"", "127.0.0.1:50051", "[::1]:1", "kiln:65535", "unix:/run/kiln", "unix:///run/kiln",
		"dns:kiln.example:50051", "dns:///kiln.example:50051", "passthrough:///kiln:50051",
	} {
		if client, err := New(address, Options{}); err != nil {
			t.Errorf("%s: %v", address, err)
		} else {
			client.Close()
		}
	}
}

func TestArgumentsOfNoUse(t *testing.T) {
	if _, err := New("", Options{Timeout: -time.Second}); err == nil {
		t.Error("took a timeout below zero")
	}
	client, err := New("", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, digest := range []string{"", "00", strings.Repeat("G", 64), strings.Repeat("0", 64) + "\n"} {
		_, err := client.CompileDigest(context.Background(), digest, CompileOptions{})
		if err == nil || !strings.Contains(err.Error(), "64 lowercase") {
			t.Errorf("%q: %v", digest, err)
		}
	}
}

// daemon returns a client of the daemon that the tests of the repository run, and a module.
func daemon(t *testing.T, keyFile string) (*Client, []byte) {
	t.Helper()
	address := os.Getenv("KILN_ADDRESS")
	if address == "" {
		t.Skip("needs a daemon: KILN_ADDRESS, KILN_MODULE, KILN_KEY, KILN_WRONG_KEY")
	}
	var options Options
	if keyFile != "" {
		keys, err := ReadKeys(os.Getenv(keyFile))
		if err != nil {
			t.Fatal(err)
		}
		options.TrustedKeys = keys
	}
	client, err := New(address, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	module, err := os.ReadFile(os.Getenv("KILN_MODULE"))
	if err != nil {
		t.Fatal(err)
	}
	return client, module
}

func TestAModuleOfNoBytes(t *testing.T) {
	client, _ := daemon(t, "KILN_KEY")
	for _, module := range [][]byte{nil, {}} {
		if _, err := client.Compile(context.Background(), module, CompileOptions{}); !errors.Is(err, ErrNotWasm) {
			t.Errorf("%v: %v", module, err)
		}
	}
}

func TestARefusedArtifactNamesItsRequest(t *testing.T) {
	client, module := daemon(t, "KILN_WRONG_KEY")
	_, err := client.Compile(context.Background(), module, CompileOptions{Engine: "wasmtime"})
	var failure *Error
	if !errors.As(err, &failure) || failure.Reason != "ATTESTATION_INVALID" || len(failure.RequestID) != 16 {
		t.Errorf("%#v", err)
	}
}

// inFile returns an artifact in a file of a host store that somebody can write to.
func inFile(t *testing.T) (*Artifact, *os.File) {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("native code"); err != nil {
		t.Fatal(err)
	}
	opened := &hostFile{file: file}
	header := &pb.ArtifactHeader{SizeBytes: 11, ArtifactSha256: sha256Hex([]byte("native code"))}
	if err := opened.look(); err != nil {
		t.Fatal(err)
	}
	return &Artifact{Header: header, file: opened}, file
}

func TestAFileThatSomebodyWritesTo(t *testing.T) {
	artifact, file := inFile(t)
	defer artifact.Close()
	if content, err := artifact.Bytes(); err != nil || string(content) != "native code" {
		t.Fatal(content, err)
	}
	if err := artifact.CheckUnchanged(); err != nil {
		t.Fatal(err)
	}
	if !artifact.file.young() {
		t.Error("a new file counts as an old one")
	}
	if _, err := file.WriteAt([]byte("other"), 0); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(file.Name(), later, later); err != nil {
		t.Fatal(err)
	}
	if _, err := artifact.Bytes(); !errors.Is(err, ErrArtifactMismatch) {
		t.Errorf("took other bytes: %v", err)
	}
	if err := artifact.CheckUnchanged(); !errors.Is(err, ErrArtifactMismatch) {
		t.Errorf("took a file that changed: %v", err)
	}
}
