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
	// Violations are the fields of the request that the daemon refused, and why.
	Violations []*errdetails.BadRequest_FieldViolation

	cause error
	// Whether the daemon told RetryAfter.
	isTold bool
}

// What errors.Is compares with: each stands for all errors of its reason.
var (
	ErrInvalidRequest           = &Error{Reason: "INVALID_REQUEST"}
	ErrNotWasm                  = &Error{Reason: "NOT_WASM"}
	ErrModuleInvalid            = &Error{Reason: "MODULE_INVALID"}
	ErrModuleTooLarge           = &Error{Reason: "MODULE_TOO_LARGE"}
	ErrDigestMismatch           = &Error{Reason: "DIGEST_MISMATCH"}
	ErrUploadInterrupted        = &Error{Reason: "UPLOAD_INTERRUPTED"}
	ErrEngineUnknown            = &Error{Reason: "ENGINE_UNKNOWN"}
	ErrEngineRemoved            = &Error{Reason: "ENGINE_REMOVED"}
	ErrTargetUnsupported        = &Error{Reason: "TARGET_UNSUPPORTED"}
	ErrSettingUnknown           = &Error{Reason: "SETTING_UNKNOWN"}
	ErrCompatibilityUnknown     = &Error{Reason: "COMPATIBILITY_UNKNOWN"}
	ErrCompatibilityUnsupported = &Error{Reason: "COMPATIBILITY_UNSUPPORTED"}
	ErrEngineLacksFeature       = &Error{Reason: "ENGINE_LACKS_FEATURE"}
	ErrModuleNotLoaded          = &Error{Reason: "MODULE_NOT_LOADED"}
	ErrCompileTimeout           = &Error{Reason: "COMPILE_TIMEOUT"}
	ErrCompileMemoryLimit       = &Error{Reason: "COMPILE_MEMORY_LIMIT"}
	ErrArtifactTooLarge         = &Error{Reason: "ARTIFACT_TOO_LARGE"}
	ErrCompilerCrashed          = &Error{Reason: "COMPILER_CRASHED"}
	ErrJobEnded                 = &Error{Reason: "JOB_ENDED"}
	ErrModuleQuarantined        = &Error{Reason: "MODULE_QUARANTINED"}
	ErrCompileQueueFull         = &Error{Reason: "COMPILE_QUEUE_FULL"}
	// ErrQueueFull is the name of ErrCompileQueueFull before 0.7.
	ErrQueueFull          = ErrCompileQueueFull
	ErrQuotaExceeded      = &Error{Reason: "QUOTA_EXCEEDED"}
	ErrWorkerUnavailable  = &Error{Reason: "WORKER_UNAVAILABLE"}
	ErrServerDraining     = &Error{Reason: "SERVER_DRAINING"}
	ErrCredentialsMissing = &Error{Reason: "CREDENTIALS_MISSING"}
	ErrCredentialsInvalid = &Error{Reason: "CREDENTIALS_INVALID"}
	ErrRoleMissing        = &Error{Reason: "ROLE_MISSING"}
	ErrInternalFailure    = &Error{Reason: "INTERNAL"}
	// ErrInternal is the name of ErrInternalFailure before 0.7.
	ErrInternal = ErrInternalFailure

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

// Is reports whether target is an *Error of the same reason, such as ErrNotWasm.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Reason != "" && other.Reason == e.Reason
}

// Unwrap returns what is below: gRPC's error, or that of the context.
func (e *Error) Unwrap() error { return e.cause }

// failed returns the error of a call that failed.
func (c *Client) failed(ctx context.Context, err error, requestID string) error {
	var own *Error
	if errors.As(err, &own) {
		own.RequestID = requestID
		return own
	}
	st := status.Convert(err)
	failure := &Error{Code: st.Code(), Message: st.Message(), RequestID: requestID, cause: err}
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "wasmkiln" {
				failure.Reason, failure.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.RetryInfo:
			failure.RetryAfter, failure.isTold = max(0, detail.GetRetryDelay().AsDuration()), true
		case *errdetails.BadRequest:
			failure.Violations = detail.GetFieldViolations()
		}
	}
	if failure.Reason != "" {
		return failure
	}
	// gRPC's own failures.
	detail := failure.Message
	failure.Metadata = map[string]string{"address": c.address, "detail": detail}
	switch failure.Code {
	case codes.Unavailable:
		failure.Reason = ErrConnectionFailed.Reason
		failure.Message = fmt.Sprintf(
			"no daemon answers at %s (%s): start one with `wasmkilnd serve`, or check the address and TLS",
			c.address, detail)
	case codes.DeadlineExceeded:
		failure.Reason = ErrDeadlineExceeded.Reason
		failure.Message = fmt.Sprintf("no answer from %s in time", c.address)
		failure.cause = context.DeadlineExceeded
	case codes.Canceled:
		if ctx.Err() != nil {
			failure.cause = context.Cause(ctx)
		}
	case codes.ResourceExhausted:
		// How gRPC servers refuse a request above their own limit.
		if strings.Contains(strings.ToLower(detail), "received message larger than max") {
			failure.Reason = ErrModuleTooLarge.Reason
		}
	}
	return failure
}

// refused returns the error, of the reason of kind, for an answer that the client itself refuses.
func refused(kind *Error, format string, values ...any) *Error {
	return &Error{Code: codes.DataLoss, Reason: kind.Reason, Message: fmt.Sprintf(format, values...)}
}
