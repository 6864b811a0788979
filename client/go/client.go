// Package wasmkiln is a client of a wasmkiln daemon, which compiles WebAssembly modules once and
// serves the native code to every service.
//
//	client, err := wasmkiln.New("127.0.0.1:50051", wasmkiln.Options{TrustedKeys: keys})
//	artifact, err := client.Compile(ctx, module, wasmkiln.CompileOptions{Engine: "wasmtime"})
//
// Compile asks by the module's SHA-256 first and uploads the module only if the daemon lacks it.
// An artifact that Compile returns is the one that the call asked for: size and SHA-256 were
// checked, the header was compared with the call and, where the client has trusted keys, one of
// them signed it. Without trusted keys no signature is checked, and loading an artifact is running
// its code.
//
// On the daemon's own machine Compile takes a file of the daemon's host store instead of bytes, if
// it may trust the file: see Options.NoHostStore.
//
// Errors are of type *Error. They say a reason, by which a caller decides:
//
//	if errors.Is(err, wasmkiln.ErrModuleInvalid) { … }
//
// Calls for code are retried until their context ends, so that they survive a daemon's restart:
// docs/reference/api.md says when. A download or an upload continues where it was cut.
//
// The messages and the service lie in wasmkilnpb. They are generated from ../../protos, and in the
// repository so that `go get` works. `go generate` writes them anew; it needs protoc,
// protoc-gen-go 1.33 and protoc-gen-go-grpc 1.64, of Debian 13.
//
//go:generate sh generate.sh
package wasmkiln

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	mathrand "math/rand"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

const (
	// DefaultAddress is where a daemon listens unless it is told otherwise.
	DefaultAddress = "127.0.0.1:50051"
	// DefaultTimeout is how long a call may take whose context has no deadline.
	DefaultTimeout = time.Minute
	// DefaultMaxArtifactBytes is four times the default limit of a daemon.
	DefaultMaxArtifactBytes = 1 << 30

	maxMessageBytes = 64 << 20
	// Larger modules go in pieces, of which a cut costs one.
	uploadAboveBytes = 8 << 20
	pieceBytes       = 256 << 10
	// The first pause before a retry, and the longest; what took an upload over gets ten times as long.
	firstPause, longestPause = 100 * time.Millisecond, 2 * time.Second
	// FindMissing takes 10,000 keys, and 2 MiB.
	keysAtOnce = 1_000
	// A daemon puts no larger artifact into its header's message.
	inlineLimitBytes = 65_536
	// How long the client asks for bytes after it could not use a file.
	noFileFor = time.Minute
)

var (
	isDigest = regexp.MustCompile("^[0-9a-f]{64}$")
	// Without a port gRPC connects to 443. With "///" it is for a resolver of the program.
	isAddress = regexp.MustCompile(
		`^(unix|unix-abstract|dns|xds|passthrough):|^[a-z0-9+.-]+:///|^([^/:]+|\[.+\]):[1-9][0-9]{0,4}$`)
	isLocal = regexp.MustCompile(
		`^unix(-abstract)?:|^((dns|passthrough):(///)?)?(localhost|127(\.\d+){3}|\[::1\]):\d+$`)
	// In Go's words: failures of TLS that another attempt does not heal.
	isLasting = regexp.MustCompile("certificate|tls: first record")
	// In grpc-go's words: only the stream was cut, also in the middle of a message, as a proxy does
	// whose daemon is away, or a daemon that ends.
	isCut = regexp.MustCompile(
		"^(CANCELLED|unexpected EOF)$|RST_STREAM with error code: (NO_ERROR|INTERNAL_ERROR|CANCEL)$|closed the stream without sending trailers$")
	// What chooses an engine's fast compiler.
	fast = map[string]string{"strategy": "winch", "compiler": "singlepass"}
	// Settings that artifacts of earlier daemons do not state, and what these artifacts have.
	unstated = map[string]string{
		"strategy":                                 "cranelift",
		"compiler":                                 "cranelift",
		"collector":                                "drc",
		"memory_init_cow":                          "true",
		"memory_reservation_for_growth":            "2147483648",
		"debug_info":                               "false",
		"concurrency_support":                      "true",
		"wasm_branch_hinting":                      "false",
		"wasm_compact_imports":                     "false",
		"wasm_component_model_accessors":           "false",
		"wasm_component_model_async":               "true",
		"wasm_component_model_async_stackful":      "false",
		"wasm_component_model_canonical_names":     "false",
		"wasm_component_model_more_async_builtins": "false",
	}
)

// Options say how a client reaches its daemon and what it trusts. The zero value is for a daemon
// on this machine without TLS.
type Options struct {
	// TLS is the configuration for a connection over TLS, nil for plaintext.
	TLS *tls.Config
	// Token goes with each call, over TLS or to this machine only.
	Token string
	// TokenFile is read at each call instead, so that a new token counts at once.
	TokenFile string
	// TrustedKeys are the daemons' public keys; see ParseKeys and ReadKeys. With none, the client
	// checks digests and no signature.
	TrustedKeys []ed25519.PublicKey
	// Timeout is for calls whose context has no deadline; 0 means DefaultTimeout.
	Timeout time.Duration
	// NoHostStore makes the client ask for bytes always. Otherwise, of a daemon on this machine, it
	// takes files that root or its own user owns and nobody else can write to.
	NoHostStore bool
	// MaxArtifactBytes refuses larger artifacts; 0 means DefaultMaxArtifactBytes.
	MaxArtifactBytes uint64
	// DialOptions are for interceptors and the like.
	DialOptions []grpc.DialOption
}

// Client calls one daemon. It is safe for concurrent use.
type Client struct {
	address string
	options Options
	keys    keyring
	conn    *grpc.ClientConn
	modules pb.ModuleServiceClient
	// Until when, in Unix nanoseconds, to ask for no file, since the last one was of no use.
	noFileUntil atomic.Int64
}

// New returns a client of the daemon at address: host:port, or unix:/path. It connects with the
// first call.
func New(address string, options Options) (*Client, error) {
	if address == "" {
		address = DefaultAddress
	}
	keys := keyring{}
	for _, key := range options.TrustedKeys {
		if len(key) != ed25519.PublicKeySize {
			return nil, errNoKey
		}
		keys[keyID(key)] = key
	}
	switch {
	case !isAddress.MatchString(address):
		return nil, fmt.Errorf("an address is host:port or unix:/path, not %s", address)
	case options.Timeout < 0:
		return nil, errors.New("a timeout has to be positive")
	case options.Token+options.TokenFile != "" && options.TLS == nil && !isLocal.MatchString(address):
		return nil, fmt.Errorf("cannot send a token to %s in plaintext: set TLS", address)
	}
	if options.Timeout == 0 {
		options.Timeout = DefaultTimeout
	}
	if options.MaxArtifactBytes == 0 {
		options.MaxArtifactBytes = DefaultMaxArtifactBytes
	}
	options.NoHostStore = options.NoHostStore || !isLocal.MatchString(address)
	transport := insecure.NewCredentials()
	if options.TLS != nil {
		transport = credentials.NewTLS(options.TLS)
	}
	// gRPC fails each call with the first one's error until its next attempt: so that is soon.
	soon := backoff.DefaultConfig
	soon.BaseDelay, soon.MaxDelay = 100*time.Millisecond, time.Second
	conn, err := grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: 20 * time.Second}),
		grpc.WithUserAgent("wasmkiln-go"),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	}, options.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("cannot use the address %s: %w", address, err)
	}
	modules := pb.NewModuleServiceClient(conn)
	return &Client{address: address, options: options, keys: keys, conn: conn, modules: modules}, nil
}

// Close ends running calls and the connection.
func (c *Client) Close() error { return c.conn.Close() }

// CompileOptions say for what to compile. The zero value is for the daemon's default engine, its
// own machine and the engine's default settings.
type CompileOptions struct {
	// Engine is an id ("wasmtime-50.0.1"), or a name ("wasmtime") for its newest version.
	Engine string
	// Target is an LLVM-style triple, CPU a level such as "x86-64-v3".
	Target, CPU string
	// Settings are engine options, with names and values as Capabilities lists them.
	Settings map[string]string
	// Compatibility is anything that the host's own wasmtime compiled, such as the empty module, or
	// the section ".wasmtime.engine" of it. The daemon then chooses code that this engine loads:
	// leave Engine, Target, CPU and Settings empty.
	Compatibility []byte
	// Background makes the call wait behind all others.
	Background bool
	// AcceptFast takes the code of a fast compiler (Header.IsFast) until the daemon has optimised
	// code: a later call gets that.
	AcceptFast bool
	// SkipCacheLookup compiles even if a tier has the artifact.
	SkipCacheLookup bool
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

// Load validates a module by the engine of the options, and stores it in the daemon, so that it can
// be compiled by its digest.
func (c *Client) Load(ctx context.Context, module []byte, options CompileOptions) (*pb.LoadResponse, error) {
	digest := sha256Hex(module)
	return run(ctx, c, options.Background, digest, func(ctx context.Context) (*pb.LoadResponse, error) {
		var answer *pb.LoadResponse
		var moved uint64
		err := c.again(ctx, &moved, func() (err error) {
			answer, err = c.load(ctx, digest, module, options.Engine, &moved)
			return err
		})
		if err == nil && answer.GetSha256() != digest {
			return nil, refused(ErrUnexpectedAnswer, "the daemon's answer is about another module")
		}
		return answer, err
	})
}

// FindMissing returns the keys whose artifacts no tier has, in their order. What a key leaves out is
// the daemon's default.
func (c *Client) FindMissing(ctx context.Context, keys []*pb.ArtifactKey) ([]*pb.ArtifactKey, error) {
	found, err := run(ctx, c, false, "", func(ctx context.Context) (*pb.FindMissingResponse, error) {
		var all, answer pb.FindMissingResponse
		for ; len(keys) > 0; keys = keys[min(len(keys), keysAtOnce):] {
			request := &pb.FindMissingRequest{Keys: keys[:min(len(keys), keysAtOnce)]}
			err := c.again(ctx, new(uint64), func() error {
				got, err := c.modules.FindMissing(ctx, request)
				answer.Missing = got.GetMissing()
				return err
			})
			if err != nil {
				return nil, err
			}
			all.Missing = append(all.Missing, answer.Missing...)
		}
		return &all, nil
	})
	return found.GetMissing(), err
}

// Stats returns the daemon's counters.
func (c *Client) Stats(ctx context.Context) (*pb.StatsResponse, error) {
	return run(ctx, c, false, "", func(ctx context.Context) (*pb.StatsResponse, error) {
		return c.modules.Stats(ctx, &pb.StatsRequest{})
	})
}

// Capabilities returns what a compile may ask for: engines, targets, settings and limits.
func (c *Client) Capabilities(ctx context.Context) (*pb.GetCapabilitiesResponse, error) {
	return run(ctx, c, false, "", func(ctx context.Context) (*pb.GetCapabilitiesResponse, error) {
		return c.modules.GetCapabilities(ctx, &pb.GetCapabilitiesRequest{})
	})
}

// run runs what makes the requests of one call: they share a deadline and what they say of
// themselves. A digest says which module the call is about.
func run[Answer any](
	ctx context.Context, c *Client, background bool, module string,
	requests func(context.Context) (*Answer, error),
) (*Answer, error) {
	var id [8]byte
	_, _ = rand.Read(id[:])
	requestID := hex.EncodeToString(id[:])
	said := []string{"x-request-id", requestID}
	if background {
		said = append(said, "wasmkiln-priority", "background")
	}
	if module != "" {
		// A balancer that routes by it sends all calls about a module to the same daemon.
		said = append(said, "wasmkiln-module", module)
	}
	token := c.options.Token
	if c.options.TokenFile != "" {
		text, err := os.ReadFile(c.options.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the token: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	if token != "" {
		said = append(said, "authorization", "Bearer "+token)
	}
	if _, limited := ctx.Deadline(); !limited {
		limited, done := context.WithTimeout(ctx, c.options.Timeout)
		defer done()
		ctx = limited
	}
	answer, err := requests(metadata.AppendToOutgoingContext(ctx, said...))
	if err != nil {
		return nil, c.failed(ctx, err, requestID)
	}
	return answer, nil
}

func (c *Client) compile(ctx context.Context, digest string, module []byte, options CompileOptions) (*Artifact, error) {
	section, err := sectionOf(options.Compatibility)
	if err != nil {
		return nil, err
	}
	request := &pb.CompileRequest{
		Source: &pb.CompileRequest_Sha256{Sha256: digest},
		Engine: options.Engine, Target: options.Target, Cpu: options.CPU, Settings: options.Settings,
		InlineLimitBytes: inlineLimitBytes,
		AcceptHostFile:   !c.options.NoHostStore && time.Now().UnixNano() > c.noFileUntil.Load(),
		AcceptFast:       options.AcceptFast,
	}
	if section != nil {
		key := sha256.Sum256(section)
		request.Compatibility = key[:]
	}
	return run(ctx, c, options.Background, digest, func(ctx context.Context) (*Artifact, error) {
		var got, artifact Artifact
		var moved uint64
		ask := func() (err error) {
			artifact, err = c.ask(ctx, request, digest, options.SkipCacheLookup, &got, &moved)
			if c.is(ctx, err, ErrCompatibilityUnknown) && !bytes.Equal(request.Compatibility, section) {
				request.Compatibility = section
				artifact, err = c.ask(ctx, request, digest, options.SkipCacheLookup, &got, &moved)
			}
			return err
		}
		err := c.again(ctx, &moved, func() error {
			request.Source = &pb.CompileRequest_Sha256{Sha256: digest}
			err := ask()
			isLacking := module != nil && c.is(ctx, err, ErrModuleNotLoaded)
			if isLacking && len(module) > uploadAboveBytes {
				if _, err = c.load(ctx, digest, module, options.Engine, &moved); err == nil {
					err = ask()
				}
				isLacking = c.is(ctx, err, ErrModuleNotLoaded)
			}
			if isLacking { // also where no tier takes so large a module: it comes with the request
				request.Source = &pb.CompileRequest_Module{Module: module}
				err = ask()
			}
			return err
		})
		if err == nil && artifact.Header.GetHostFile() != nil {
			if taken := c.fromFile(artifact.Header); taken != nil {
				return taken, nil
			}
			// Another machine's or another container's file, or a damaged one. The daemon has the
			// module by now.
			c.noFileUntil.Store(time.Now().Add(noFileFor).UnixNano())
			request.Source, request.AcceptHostFile = &pb.CompileRequest_Sha256{Sha256: digest}, false
			err = c.again(ctx, &moved, ask)
		}
		if err == nil {
			err = checkBytes(artifact.Header, artifact.bytes)
		}
		if err == nil && len(c.keys) > 0 {
			err = c.keys.verify(artifact.Header)
		}
		return &artifact, err
	})
}

// again attempts something until it succeeds, while the context lasts and the error may pass. Pauses
// grow until more bytes than ever before have moved. Where the time ends after nobody answered, it
// returns ErrConnectionFailed, which says more.
func (c *Client) again(ctx context.Context, moved *uint64, attempt func() error) error {
	var away error
	for count, most := 1, *moved; ; count++ {
		err := attempt()
		if err == nil {
			return nil
		}
		if *moved > most {
			count, most, away = 1, *moved, nil
		}
		if away != nil && c.is(ctx, err, ErrDeadlineExceeded) {
			return away
		}
		pause, mayPass := pauseAfter(c.failed(ctx, err, ""), count)
		deadline, _ := ctx.Deadline()
		if !mayPass || time.Until(deadline) <= pause {
			return err
		}
		if away = nil; c.is(ctx, err, ErrConnectionFailed) {
			away = err
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// pauseAfter returns how long to pause after failure 1, 2, …, and whether another attempt may help.
func pauseAfter(err error, count int) (time.Duration, bool) {
	var failure *Error
	if !errors.As(err, &failure) || isLasting.MatchString(failure.Metadata["detail"]) {
		return 0, false
	}
	pause, isTakenOver := firstPause, errors.Is(failure, ErrUploadInterrupted)
	if isTakenOver {
		pause *= 10
	}
	pause = min(pause<<min(count-1, 10), longestPause)
	// Callers do not all come at the same moment.
	pause = pause/2 + time.Duration(mathrand.Int63n(int64(pause/2)+1))
	mayPass := failure.isTold || isTakenOver || failure.Code == codes.Unavailable ||
		failure.Reason == "" && isCut.MatchString(failure.Message)
	return pause + failure.RetryAfter, mayPass
}

// sectionOf returns the section in which wasmtime says for which engine it compiled something, or a
// section as it is.
func sectionOf(compiled []byte) ([]byte, error) {
	isWasm := bytes.HasPrefix(compiled, []byte("\x00asm"))
	if compiled == nil || bytes.HasPrefix(compiled, []byte{0}) && !isWasm {
		return compiled, nil
	}
	if file, err := elf.NewFile(bytes.NewReader(compiled)); err == nil {
		if section := file.Section(".wasmtime.engine"); section != nil {
			if found, err := section.Data(); err == nil && len(found) > 0 {
				return found, nil
			}
		}
	}
	return nil, errors.New("cannot use Compatibility: these bytes are nothing that wasmtime compiled")
}

// load has the daemon take a module: a large one in pieces, from where the daemon stands, if it knows
// that, and others in one message.
func (c *Client) load(ctx context.Context, digest string, module []byte, engine string, moved *uint64) (*pb.LoadResponse, error) {
	if len(module) > uploadAboveBytes {
		answer, err := c.upload(ctx, digest, module, engine, moved)
		if status.Code(err) != codes.Unimplemented {
			return answer.GetLoaded(), err
		}
	}
	return c.modules.Load(ctx, &pb.LoadRequest{Module: module, Engine: engine})
}

func (c *Client) upload(ctx context.Context, digest string, module []byte, engine string, moved *uint64) (*pb.UploadResponse, error) {
	state, err := c.modules.QueryUpload(ctx, &pb.QueryUploadRequest{Sha256: digest})
	if err != nil {
		return nil, err
	}
	stream, err := c.modules.Upload(ctx)
	if err != nil {
		return nil, err
	}
	*moved = max(*moved, state.GetHeldBytes())
	begin := int(min(state.GetHeldBytes(), uint64(len(module))))
	request := &pb.UploadRequest{Sha256: digest, SizeBytes: uint64(len(module)), Engine: engine}
	for at := begin; err == nil && (at == begin || at < len(module)); at += pieceBytes {
		request.Offset, request.Data = uint64(at), module[at:min(at+pieceBytes, len(module))]
		err = stream.Send(request) // an error says that the call has ended, and the answer why
		request = &pb.UploadRequest{}
	}
	return stream.CloseAndRecv()
}

// ask makes a Compile call, for what follows on what got has of a call that was cut. It returns what
// came, which nobody has checked against a digest.
func (c *Client) ask(
	ctx context.Context, request *pb.CompileRequest, digest string, fresh bool, got *Artifact, moved *uint64,
) (Artifact, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream where its rest is of no use
	request.OffsetBytes, request.ArtifactSha256 = uint64(len(got.bytes)), ""
	if len(got.bytes) > 0 {
		request.ArtifactSha256 = got.Header.GetArtifactSha256()
	}
	before := got.Header
	request.SkipCacheLookup = fresh && before == nil // else what was compiled for this call is in a tier
	stream, err := c.modules.Compile(ctx, request)
	for isBegun := false; ; {
		var message *pb.CompileResponse
		if err == nil {
			message, err = stream.Recv()
		}
		if err == io.EOF && isBegun {
			return *got, nil
		}
		if err != nil && err != io.EOF {
			return Artifact{}, err
		}
		header := message.GetHeader()
		if isBegun == (header != nil) {
			return Artifact{}, refused(ErrArtifactMismatch, "the daemon's answer does not begin with its one header")
		}
		if header != nil {
			if err := c.checkHeader(request, digest, header); err != nil {
				return Artifact{}, err
			}
			isOther := before.GetArtifactSha256() != header.GetArtifactSha256()
			if fresh && before != nil && isOther && header.GetOrigin() != pb.Origin_ORIGIN_COMPILED {
				*got = Artifact{}
				lost := refused(ErrArtifactMismatch, "the daemon has lost what it compiled for this call")
				lost.isTold = true
				return *got, lost
			}
			isBegun, got.Header = true, header
			got.bytes = append(got.bytes[:header.GetOffsetBytes()], header.GetInlineArtifact()...)
			header.InlineArtifact = nil
		}
		got.bytes = append(got.bytes, message.GetChunk()...)
		size := uint64(len(got.bytes))
		*moved = max(*moved, size)
		if most := got.Header.GetSizeBytes(); size > most {
			return Artifact{}, refused(ErrArtifactMismatch, "more came than the %d bytes of the header", most)
		}
	}
}

// is reports whether a call failed for a reason.
func (c *Client) is(ctx context.Context, err error, reason *Error) bool {
	return err != nil && errors.Is(c.failed(ctx, err, ""), reason)
}

// checkHeader returns an error unless a header is about what the request asked for. A signature
// binds an artifact to its header, and not to the call: whoever sits in between could answer with
// an artifact that counts no fuel.
func (c *Client) checkHeader(request *pb.CompileRequest, digest string, header *pb.ArtifactHeader) error {
	engine, size := header.GetEngine(), header.GetSizeBytes()
	full := engine.GetName() + "-" + engine.GetVersion()
	asked := [][3]string{
		{"an artifact of module", digest, header.GetModuleSha256()},
		{"an engine whose id is", full, engine.GetId()},
		{"target", request.GetTarget(), header.GetTarget()},
		{"cpu", request.GetCpu(), header.GetCpu()},
	}
	if request.GetEngine() != engine.GetName() {
		asked = append(asked, [3]string{"engine", request.GetEngine(), full})
	}
	for name, value := range request.GetSettings() {
		got, stated := header.GetSettings()[name]
		if !stated {
			got = unstated[name]
		}
		asked = append(asked, [3]string{"setting " + name, value, got})
	}
	for _, each := range asked {
		if each[1] != "" && each[1] != each[2] {
			return refused(ErrArtifactMismatch, "asked for %s %.200q, got %.200q", each[0], each[1], each[2])
		}
	}
	// A setting that the call did not name has to have the engine's default, unless the host's engine
	// was shown, which compares them itself.
	isShown, isFast := len(request.GetCompatibility()) > 0, false
	for name, value := range header.GetChangedSettings() {
		isFastChoice := fast[name] == value
		isFast = isFast || isFastChoice
		wanted, named := request.GetSettings()[name]
		isAsked := named && wanted == value || isFastChoice && request.GetAcceptFast()
		if !isShown && !isAsked {
			return refused(ErrArtifactMismatch, "got setting %.200q, which was not asked for", name)
		}
	}
	switch {
	case header.GetIsFast() != isFast:
		return refused(ErrArtifactMismatch, "the header and its settings name different compilers")
	case header.GetContentEncoding() != "":
		return refused(ErrArtifactMismatch, "got an encoding that was not asked for")
	case header.GetHostFile() != nil && !request.GetAcceptHostFile():
		return refused(ErrArtifactMismatch, "got a file that was not asked for")
	case header.GetOffsetBytes() != 0 && (header.GetOffsetBytes() != request.GetOffsetBytes() ||
		header.GetArtifactSha256() != request.GetArtifactSha256()):
		return refused(ErrArtifactMismatch, "got the rest of another artifact")
	}
	if limit := c.options.MaxArtifactBytes; size > limit {
		large := refused(ErrArtifactTooLarge, "the artifact has %d bytes, above MaxArtifactBytes", size)
		large.Code = codes.ResourceExhausted
		large.Metadata = map[string]string{"size_bytes": fmt.Sprint(size), "limit_bytes": fmt.Sprint(limit)}
		return large
	}
	return nil
}

// checkBytes returns an error unless an artifact's bytes are those of its header.
func checkBytes(header *pb.ArtifactHeader, content []byte) error {
	size, digest := header.GetSizeBytes(), header.GetArtifactSha256()
	if actual := sha256Hex(content); actual != digest || uint64(len(content)) != size {
		return refused(ErrArtifactMismatch, "%d bytes with the SHA-256 %s came, the header says %d and %.64q",
			len(content), actual, size, digest)
	}
	return nil
}

// openHostFile opens the file that a header names. It returns nil where the file does not count;
// so it does on systems other than Linux, where no daemon runs.
var openHostFile = func(*pb.ArtifactHeader) *hostFile { return nil }

// hostFile is an open file of the host store that was found to be the daemon's.
type hostFile struct {
	*os.File
	// changed says when it was last written to, and hasChanged whether since it was opened.
	changed    time.Time
	hasChanged func() bool
}

// fromFile returns the artifact in the file that the daemon names, nil if it is of no use.
func (c *Client) fromFile(header *pb.ArtifactHeader) *Artifact {
	file := openHostFile(header)
	if file == nil {
		return nil
	}
	artifact := &Artifact{Header: header, file: file}
	// Whoever trusts the file's owner needs no digest; who gave keys asked for a signature.
	if len(c.keys) == 0 {
		return artifact
	}
	young := time.Since(file.changed) < time.Second // it may change without a trace in its times
	content, err := artifact.Bytes()
	isGood := err == nil && c.keys.verify(header) == nil && artifact.CheckUnchanged() == nil
	if isGood && !young {
		return artifact
	}
	_ = artifact.Close()
	if !isGood {
		return nil
	}
	return &Artifact{Header: header, bytes: content}
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
	content, err := os.ReadFile(a.Path())
	if err == nil {
		err = checkBytes(a.Header, content)
	}
	return content, err
}

// Path returns where an engine can map the artifact, "" where it is in memory. It names an open
// file by its descriptor, so that nobody can put another one there, and is good until Close.
func (a *Artifact) Path() string {
	if a.file == nil {
		return ""
	}
	return fmt.Sprintf("/proc/self/fd/%d", a.file.Fd())
}

// CheckUnchanged returns ErrArtifactMismatch if somebody wrote to the file since it was checked: call
// it once an engine has mapped Path, and throw away what was loaded if it fails.
func (a *Artifact) CheckUnchanged() error {
	if a.file != nil && a.file.hasChanged() {
		return refused(ErrArtifactMismatch, "the file changed after it was opened")
	}
	return nil
}

// Close lets go of the file. What an engine has mapped stays.
func (a *Artifact) Close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}

func sha256Hex(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
