package wasmkiln

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is every failure of a call. Decide by Reason, or with errors.Is and one of the Err
// variables.
type Error struct {
	// Code is the gRPC status code.
	Code codes.Code
	// Reason is the contract's word for the condition, "" where there is none.
	Reason string
	// Message is a sentence for people.
	Message string
	// Metadata holds what the contract lists for the reason.
	Metadata map[string]string
	// RetryAfter is how long to wait before another try, 0 where the daemon did not say.
	RetryAfter time.Duration
	// RequestID names the call in the daemon's log.
	RequestID string
	// Violations are the fields of the request that the daemon refused.
	Violations []FieldViolation

	cause error
}

// FieldViolation is a field of the request that the daemon refused, and why.
type FieldViolation struct {
	Field, Description string
}

// What errors.Is compares with: each stands for all errors of its reason.
var (
	ErrInvalidRequest     = &Error{Reason: "INVALID_REQUEST"}
	ErrNotWasm            = &Error{Reason: "NOT_WASM"}
	ErrModuleInvalid      = &Error{Reason: "MODULE_INVALID"}
	ErrModuleTooLarge     = &Error{Reason: "MODULE_TOO_LARGE"}
	ErrDigestMismatch     = &Error{Reason: "DIGEST_MISMATCH"}
	ErrEngineUnknown      = &Error{Reason: "ENGINE_UNKNOWN"}
	ErrEngineRemoved      = &Error{Reason: "ENGINE_REMOVED"}
	ErrTargetUnsupported  = &Error{Reason: "TARGET_UNSUPPORTED"}
	ErrSettingUnknown     = &Error{Reason: "SETTING_UNKNOWN"}
	ErrEngineLacksFeature = &Error{Reason: "ENGINE_LACKS_FEATURE"}
	ErrModuleNotLoaded    = &Error{Reason: "MODULE_NOT_LOADED"}
	ErrCompileTimeout     = &Error{Reason: "COMPILE_TIMEOUT"}
	ErrCompileMemoryLimit = &Error{Reason: "COMPILE_MEMORY_LIMIT"}
	ErrArtifactTooLarge   = &Error{Reason: "ARTIFACT_TOO_LARGE"}
	ErrCompilerCrashed    = &Error{Reason: "COMPILER_CRASHED"}
	ErrModuleQuarantined  = &Error{Reason: "MODULE_QUARANTINED"}
	ErrQueueFull          = &Error{Reason: "COMPILE_QUEUE_FULL"}
	ErrQuotaExceeded      = &Error{Reason: "QUOTA_EXCEEDED"}
	ErrWorkerUnavailable  = &Error{Reason: "WORKER_UNAVAILABLE"}
	ErrServerDraining     = &Error{Reason: "SERVER_DRAINING"}
	ErrCredentialsMissing = &Error{Reason: "CREDENTIALS_MISSING"}
	ErrCredentialsInvalid = &Error{Reason: "CREDENTIALS_INVALID"}
	ErrRoleMissing        = &Error{Reason: "ROLE_MISSING"}
	ErrInternal           = &Error{Reason: "INTERNAL"}

	// The client itself raises these.

	// ErrConnectionFailed: no daemon answers at the address, or TLS fails.
	ErrConnectionFailed = &Error{Reason: "CONNECTION_FAILED"}
	// ErrDeadlineExceeded: no answer within the call's own time.
	ErrDeadlineExceeded = &Error{Reason: "DEADLINE_EXCEEDED"}
	// ErrArtifactMismatch: the bytes differ from their header, or the header from the call.
	ErrArtifactMismatch = &Error{Reason: "ARTIFACT_MISMATCH"}
	// ErrAttestationInvalid: no trusted key signed the artifact. Metadata: cause, which is
	// "unsigned", "stranger" or "mismatch".
	ErrAttestationInvalid = &Error{Reason: "ATTESTATION_INVALID"}
	// ErrUnexpectedAnswer: the daemon's answer is about something else.
	ErrUnexpectedAnswer = &Error{Reason: "UNEXPECTED_ANSWER"}
)

// Error returns the message.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Reason
	}
	return e.Message
}

// Is reports whether target is an *Error of the same reason, such as ErrQueueFull.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Reason != "" && other.Reason == e.Reason
}

// Unwrap returns what is below: gRPC's error, or that of the context.
func (e *Error) Unwrap() error { return e.cause }

const domain = "wasmkiln"

// call is what messages say of a call.
type call struct {
	address   string
	timeout   time.Duration
	requestID string
}

// failed returns the error of a failed gRPC call.
func (c call) failed(ctx context.Context, err error) error {
	var own *Error
	if errors.As(err, &own) {
		if own.RequestID == "" {
			own.RequestID = c.requestID
		}
		return err
	}
	st := status.Convert(err)
	failure := &Error{Code: st.Code(), Message: st.Message(), RequestID: c.requestID, cause: err}
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == domain {
				failure.Reason, failure.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.RetryInfo:
			failure.RetryAfter = max(0, detail.GetRetryDelay().AsDuration())
		case *errdetails.BadRequest:
			for _, each := range detail.GetFieldViolations() {
				violation := FieldViolation{each.GetField(), each.GetDescription()}
				failure.Violations = append(failure.Violations, violation)
			}
		}
	}
	if failure.Reason == "" {
		c.explain(ctx, failure)
	}
	if id := failure.Metadata["request_id"]; id != "" {
		failure.RequestID = id
	}
	if failure.Reason == ErrCredentialsMissing.Reason {
		failure.Message += " (Options: Token or TokenFile, or TLS.Certificates)"
	}
	return failure
}

// explain says what gRPC's own failures mean.
func (c call) explain(ctx context.Context, failure *Error) {
	detail := failure.Message
	switch failure.Code {
	case codes.Unavailable:
		failure.Reason = ErrConnectionFailed.Reason
		failure.Message = fmt.Sprintf(
			"no daemon answers at %s%s: start one with `wasmkilnd serve`, or check the address",
			c.address, causeOf(detail))
		failure.Metadata = map[string]string{"address": c.address, "detail": detail}
	case codes.DeadlineExceeded:
		failure.Reason = ErrDeadlineExceeded.Reason
		failure.Message = fmt.Sprintf("no answer from %s in time", c.address)
		if c.timeout > 0 {
			failure.Message = fmt.Sprintf("no answer from %s within %s", c.address, c.timeout)
		}
		failure.Metadata = map[string]string{"address": c.address, "detail": detail}
		failure.cause = context.DeadlineExceeded
	case codes.Canceled:
		if ctx.Err() != nil {
			failure.cause = context.Cause(ctx)
		}
	case codes.Unimplemented:
		failure.Message = fmt.Sprintf(
			"the daemon at %s does not serve this call there: it may be older than this client",
			c.address)
	case codes.ResourceExhausted:
		// How gRPC servers refuse a request above their own limit.
		if strings.Contains(strings.ToLower(detail), "received message larger than max") {
			failure.Reason = ErrModuleTooLarge.Reason
			failure.Message = fmt.Sprintf("the module is larger than the daemon accepts (%s)", detail)
		}
	}
}

func causeOf(detail string) string {
	for _, known := range [][2]string{
		{"connection refused", "connection refused"},
		{"no such host", "unknown host"},
		{"produced zero addresses", "unknown host"},
		{"no such file or directory", "no such socket"},
		{"permission denied", "permission denied for this user"},
		{"first record does not look like a TLS handshake", "the server there speaks no TLS"},
		{"unknown authority", "its certificate is by a CA that is not trusted"},
		{"certificate has expired", "its certificate has expired"},
		{"certificate is valid for", "its certificate is for another host"},
		{"certificate required", "it asks for a client certificate"},
		{"error reading from server", "the connection was lost"},
		{"error reading server preface", "the server there speaks TLS, or no gRPC"},
	} {
		if strings.Contains(detail, known[0]) {
			return " (" + known[1] + ")"
		}
	}
	return ""
}

// mismatch returns the error for an artifact that is not what was asked for.
func mismatch(format string, values ...any) *Error {
	return &Error{
		Code: codes.DataLoss, Reason: ErrArtifactMismatch.Reason, Message: fmt.Sprintf(format, values...),
	}
}

// untrusted returns the error for an artifact that no trusted key signed.
func untrusted(cause, keyID, message string) *Error {
	metadata := map[string]string{"cause": cause}
	if keyID != "" {
		metadata["key_id"] = keyID
	}
	return &Error{
		Code: codes.DataLoss, Reason: ErrAttestationInvalid.Reason, Message: message, Metadata: metadata,
	}
}
