package wasmkiln

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

const (
	// A daemon puts no larger artifact into its header's message.
	inlineLimitBytes = 65_536
	// Room made for an artifact before it is here: more grows as it comes.
	mostBytesAtOnce = 64 << 20
	// A newer daemon may send parts that this client does not know, but not endlessly.
	maxEmptyMessages = 100
	// How long the client asks for bytes after it could not use a file.
	noFileFor = time.Minute
)

var isDigest = regexp.MustCompile("^[0-9a-f]{64}$")

// CompileOptions say for what to compile. The zero value is for the daemon's default engine, its
// own machine and the engine's default settings.
type CompileOptions struct {
	// Engine is an id ("wasmtime-50.0.1"), or a name ("wasmtime") for its newest version.
	Engine string
	// Target is an LLVM-style triple, CPU a level such as "x86-64-v3".
	Target, CPU string
	// Settings are engine options, with names and values as Capabilities lists them.
	Settings map[string]string
	// Background makes the call wait behind all others.
	Background bool
}

// Artifact is an engine's native code for one module. Close it: it may hold a file.
type Artifact struct {
	// Header says what the artifact is, with what it was made, and from where it came.
	Header *pb.ArtifactHeader

	bytes []byte
	file  *hostFile
}

// Bytes returns the native code. Of a file of the host store it reads the content, and compares it
// with the header's digest.
func (a *Artifact) Bytes() ([]byte, error) {
	if a.file == nil {
		return a.bytes, nil
	}
	content, err := a.file.read(a.Header.GetSizeBytes())
	if err != nil {
		return nil, mismatch("%v", err)
	}
	return content, checkBytes(a.Header, content)
}

// Path returns where an engine can map the artifact, "" where it is in memory. It names an open
// file by its descriptor, so that nobody can put another one there, and is good until Close.
func (a *Artifact) Path() string {
	if a.file == nil {
		return ""
	}
	return a.file.path()
}

// CheckUnchanged returns ErrArtifactMismatch if somebody wrote to the file since it was checked: call
// it once an engine has mapped Path, and throw away what was loaded if it fails.
func (a *Artifact) CheckUnchanged() error {
	if a.file == nil {
		return nil
	}
	if err := a.file.unchanged(); err != nil {
		return mismatch("%v", err)
	}
	return nil
}

// Close lets go of the file. What an engine has mapped stays.
func (a *Artifact) Close() error {
	if a.file == nil {
		return nil
	}
	return a.file.close()
}

// Compile returns the artifact of a module. It asks by the module's digest, and uploads the module
// if the daemon does not have it.
func (c *Client) Compile(ctx context.Context, module []byte, options CompileOptions) (*Artifact, error) {
	if module == nil {
		module = []byte{} // the daemon says that it is empty
	}
	return c.compile(ctx, sha256Hex(module), module, options)
}

// CompileDigest returns the artifact of a module that the daemon has, by the SHA-256 of its bytes
// in lowercase hex. Without it the daemon's answer is ErrModuleNotLoaded.
func (c *Client) CompileDigest(ctx context.Context, sha256 string, options CompileOptions) (*Artifact, error) {
	if !isDigest.MatchString(sha256) {
		return nil, errors.New("a digest is 64 lowercase hexadecimal digits")
	}
	return c.compile(ctx, sha256, nil, options)
}

func (c *Client) compile(ctx context.Context, digest string, module []byte, options CompileOptions) (*Artifact, error) {
	ctx, call, done, err := c.begin(ctx, options.Background, digest)
	if err != nil {
		return nil, err
	}
	defer done()
	request := &pb.CompileRequest{
		Source: &pb.CompileRequest_Sha256{Sha256: digest},
		Engine: options.Engine, Target: options.Target, Cpu: options.CPU, Settings: options.Settings,
		InlineLimitBytes: inlineLimitBytes,
		AcceptHostFile:   c.local && !c.options.NoHostStore && time.Now().UnixNano() > c.noFileUntil.Load(),
	}
	artifact, err := c.ask(ctx, request, digest, module)
	if module != nil && err != nil && errors.Is(call.failed(ctx, err), ErrModuleNotLoaded) {
		request.Source = &pb.CompileRequest_Module{Module: module}
		artifact, err = c.ask(ctx, request, digest, module)
	}
	var useless *uselessFile
	if errors.As(err, &useless) {
		c.noFileUntil.Store(time.Now().Add(noFileFor).UnixNano())
		// The daemon has the module and the artifact by now.
		request.Source, request.AcceptHostFile = &pb.CompileRequest_Sha256{Sha256: digest}, false
		artifact, err = c.ask(ctx, request, digest, module)
	}
	if err != nil {
		return nil, call.failed(ctx, err)
	}
	return artifact, nil
}

// ask makes one Compile call and returns its verified artifact.
func (c *Client) ask(ctx context.Context, request *pb.CompileRequest, digest string, module []byte) (*Artifact, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream where its rest is of no use
	stream, err := c.modules.Compile(ctx, request)
	if err != nil {
		return nil, err
	}
	var header *pb.ArtifactHeader
	var content bytes.Buffer
	for empty := 0; ; {
		message, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		switch part := message.GetPart().(type) {
		case *pb.CompileResponse_Header:
			if header != nil {
				return nil, mismatch("the daemon's answer has two headers")
			}
			if err := checkHeader(request, digest, module, part.Header); err != nil {
				return nil, err
			}
			header = part.Header
			if header.GetSizeBytes() > c.options.MaxArtifactBytes {
				return nil, c.tooLarge(header.GetSizeBytes())
			}
			content.Grow(int(min(header.GetSizeBytes(), mostBytesAtOnce)))
			content.Write(header.GetInlineArtifact())
			header.InlineArtifact = nil
		case *pb.CompileResponse_Chunk:
			if header == nil {
				return nil, mismatch("the daemon's answer has bytes before its header")
			}
			if len(part.Chunk) == 0 {
				empty++
			}
			content.Write(part.Chunk)
		default:
			empty++
		}
		if empty > maxEmptyMessages {
			return nil, mismatch("the daemon sent too many empty messages")
		}
		if uint64(content.Len()) > header.GetSizeBytes() {
			return nil, mismatch("the artifact is longer than the %d bytes of its header", header.GetSizeBytes())
		}
	}
	if header == nil {
		return nil, mismatch("the daemon's answer ended without a header")
	}
	if header.GetHostFile() != nil {
		return c.fromFile(header, content.Len())
	}
	artifact := &Artifact{Header: header, bytes: content.Bytes()}
	if err := checkBytes(header, artifact.bytes); err != nil {
		return nil, err
	}
	return artifact, c.checkSignature(header)
}

// fromFile returns the artifact in the file that the daemon names, or an uselessFile.
func (c *Client) fromFile(header *pb.ArtifactHeader, received int) (*Artifact, error) {
	if received > 0 {
		return nil, mismatch("the daemon named a file and sent bytes too")
	}
	file, err := openHostFile(header)
	if err != nil {
		return nil, &uselessFile{err}
	}
	artifact := &Artifact{Header: header, file: file}
	if len(c.keys) > 0 {
		young := file.young()
		// Whoever trusts the file's owner needs no digest; who gave keys asked for a signature.
		content, err := artifact.Bytes()
		if err == nil {
			err = c.checkSignature(header)
		}
		if err == nil {
			err = file.unchanged()
		}
		if err != nil {
			_ = file.close()
			return nil, &uselessFile{err}
		}
		if young {
			_ = file.close()
			return &Artifact{Header: header, bytes: content}, nil
		}
	}
	return artifact, nil
}

func (c *Client) checkSignature(header *pb.ArtifactHeader) error {
	if len(c.keys) == 0 {
		return nil
	}
	return c.keys.verify(header)
}

func (c *Client) tooLarge(size uint64) error {
	return &Error{
		Code: codes.ResourceExhausted, Reason: ErrArtifactTooLarge.Reason,
		Message: fmt.Sprintf("the artifact has %d bytes, above this client's limit of %d: raise MaxArtifactBytes",
			size, c.options.MaxArtifactBytes),
		Metadata: map[string]string{
			"size_bytes":  fmt.Sprint(size),
			"limit_bytes": fmt.Sprint(c.options.MaxArtifactBytes),
		},
	}
}

func checkBytes(header *pb.ArtifactHeader, content []byte) error {
	if uint64(len(content)) != header.GetSizeBytes() {
		return mismatch("the artifact ended after %d of %d bytes", len(content), header.GetSizeBytes())
	}
	if actual := sha256Hex(content); actual != header.GetArtifactSha256() {
		return mismatch("the artifact's bytes have the SHA-256 %s, its header says %.64q",
			actual, header.GetArtifactSha256())
	}
	return nil
}
