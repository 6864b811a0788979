package wasmkiln

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

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
	local   bool
	// Until when, in Unix nanoseconds, to ask for no file, since the last one was of no use.
	noFileUntil atomic.Int64
}

// New returns a client of the daemon at address: host:port, or unix:/path. It connects with the
// first call.
func New(address string, options Options) (*Client, error) {
	if address == "" {
		address = DefaultAddress
	}
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	if options.Timeout < 0 {
		return nil, errors.New("a timeout has to be positive")
	}
	keys, err := newKeyring(options.TrustedKeys)
	if err != nil {
		return nil, err
	}
	if options.Timeout == 0 {
		options.Timeout = DefaultTimeout
	}
	if options.MaxArtifactBytes == 0 {
		options.MaxArtifactBytes = DefaultMaxArtifactBytes
	}
	local := isLocal(address)
	if (options.Token != "" || options.TokenFile != "") && options.TLS == nil && !local {
		return nil, fmt.Errorf(
			"cannot send a token to %s in plaintext: anybody on the way could read it; set TLS", address)
	}
	transport := insecure.NewCredentials()
	if options.TLS != nil {
		transport = credentials.NewTLS(options.TLS)
	}
	// gRPC fails each call with the first one's error until its next attempt: so that is soon.
	reconnect := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
		MinConnectTimeout: 20 * time.Second,
	}
	conn, err := grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithConnectParams(reconnect),
		grpc.WithUserAgent("wasmkiln-go"),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	}, options.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("cannot use the address %s: %w", address, err)
	}
	return &Client{
		address: address, options: options, keys: keys, conn: conn,
		modules: pb.NewModuleServiceClient(conn), local: local,
	}, nil
}

// Close ends running calls and the connection.
func (c *Client) Close() error { return c.conn.Close() }

// LoadOptions are for Load; the zero value is for the daemon's default engine.
type LoadOptions struct {
	// Engine validates the module.
	Engine string
	// Background makes the call wait behind all others.
	Background bool
}

// Load validates a module and stores it in the daemon, so that it can be compiled by its digest.
func (c *Client) Load(ctx context.Context, module []byte, options LoadOptions) (*pb.LoadResponse, error) {
	digest := sha256Hex(module)
	ctx, call, done, err := c.begin(ctx, options.Background, digest)
	if err != nil {
		return nil, err
	}
	defer done()
	answer, err := c.modules.Load(ctx, &pb.LoadRequest{Module: module, Engine: options.Engine})
	if err != nil {
		return nil, call.failed(ctx, err)
	}
	if answer.GetSha256() != digest || answer.GetSizeBytes() != uint64(len(module)) {
		return nil, &Error{
			Code: codes.DataLoss, Reason: ErrUnexpectedAnswer.Reason, RequestID: call.requestID,
			Message: fmt.Sprintf("loaded module %s, and the daemon's answer is about %.200q",
				digest, answer.GetSha256()),
		}
	}
	return answer, nil
}

// Stats returns the daemon's counters.
func (c *Client) Stats(ctx context.Context) (*pb.StatsResponse, error) {
	ctx, call, done, err := c.begin(ctx, false, "")
	if err != nil {
		return nil, err
	}
	defer done()
	answer, err := c.modules.Stats(ctx, &pb.StatsRequest{})
	if err != nil {
		return nil, call.failed(ctx, err)
	}
	return answer, nil
}

// Capabilities returns what a compile may ask for: engines, targets, settings and limits.
func (c *Client) Capabilities(ctx context.Context) (*pb.GetCapabilitiesResponse, error) {
	ctx, call, done, err := c.begin(ctx, false, "")
	if err != nil {
		return nil, err
	}
	defer done()
	answer, err := c.modules.GetCapabilities(ctx, &pb.GetCapabilitiesRequest{})
	if err != nil {
		return nil, call.failed(ctx, err)
	}
	return answer, nil
}

// begin returns the context of a call, with its deadline and what it says of itself, and what
// ends it.
func (c *Client) begin(ctx context.Context, background bool, module string) (context.Context, call, func(), error) {
	made := call{address: c.address, requestID: requestID()}
	said := []string{"x-request-id", made.requestID}
	if background {
		said = append(said, "wasmkiln-priority", "background")
	}
	if module != "" {
		// A balancer that routes by it sends all calls about a module to the same daemon.
		said = append(said, "wasmkiln-module", module)
	}
	token, err := c.token()
	if err != nil {
		return nil, made, nil, err
	}
	if token != "" {
		said = append(said, "authorization", "Bearer "+token)
	}
	done := func() {}
	if _, limited := ctx.Deadline(); !limited {
		made.timeout = c.options.Timeout
		ctx, done = context.WithTimeout(ctx, c.options.Timeout)
	}
	return metadata.AppendToOutgoingContext(ctx, said...), made, done, nil
}

func (c *Client) token() (string, error) {
	token := c.options.Token
	if c.options.TokenFile != "" {
		text, err := os.ReadFile(c.options.TokenFile)
		if err != nil {
			return "", fmt.Errorf("cannot read the token: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	for _, char := range token {
		if char <= ' ' || char > '~' {
			return "", errors.New("cannot use the token: it has characters that no token has")
		}
	}
	return token, nil
}

func requestID() string {
	var id [8]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

func sha256Hex(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

var named = regexp.MustCompile("^(unix|unix-abstract|dns|xds|passthrough):")

// checkAddress returns an error for an address that gRPC would take for something else: without a
// port it connects to 443.
func checkAddress(address string) error {
	for _, scheme := range []string{"http", "https", "grpc", "grpcs", "tcp"} {
		if strings.HasPrefix(address, scheme+"://") {
			return fmt.Errorf("an address is host:port or unix:/path: leave out the %s:// in front", scheme)
		}
	}
	// Any other scheme is one of a resolver that the program has registered.
	if named.MatchString(address) || strings.Contains(address, "://") {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if number, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || number == 0 {
		return fmt.Errorf(
			"an address is host:port or unix:/path, with a port from 1 to 65535, not %s", address)
	}
	return nil
}

// isLocal reports whether an address is on this machine, as far as it tells by itself.
func isLocal(address string) bool {
	if strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "unix-abstract:") {
		return true
	}
	for _, scheme := range []string{"dns:///", "dns:", "passthrough:///", "passthrough:"} {
		address = strings.TrimPrefix(address, scheme)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || (ip != nil && ip.IsLoopback())
}
