// Package fault holds the errors that cross Prism's layers: what the caller can do about them, what it may be told, and
// what only the log may see.
package fault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// Code is the kind of a fault, with the numbers of the gRPC status codes.
type Code uint32

// The codes in use.
const (
	Cancelled          Code = 1
	Unknown            Code = 2
	Invalid            Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
	Exists             Code = 6
	PermissionDenied   Code = 7
	Exhausted          Code = 8
	FailedPrecondition Code = 9
	Conflict           Code = 10 // ABORTED
	OutOfRange         Code = 11
	Unimplemented      Code = 12
	Internal           Code = 13
	Unavailable        Code = 14
	DataLoss           Code = 15
	Unauthenticated    Code = 16
)

// String returns the code as gRPC spells it.
func (c Code) String() string {
	names := [...]string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
		"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
		"DATA_LOSS", "UNAUTHENTICATED",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("CODE(%d)", uint32(c))
}

// Reason is a stable name for why: a value of prism.common.v1.Reason without its prefix.
type Reason string

// The reasons in use. A test holds them against the protobuf enum.
const (
	Field             Reason = "FIELD"
	TokenClock        Reason = "TOKEN_CLOCK"
	TokenReused       Reason = "TOKEN_REUSED"
	PageToken         Reason = "PAGE_TOKEN"
	PageTokenExpired  Reason = "PAGE_TOKEN_EXPIRED"
	TooLarge          Reason = "TOO_LARGE"
	Namespace         Reason = "NAMESPACE"
	KeyRequired       Reason = "KEY_REQUIRED"
	Key               Reason = "KEY"
	VersionMismatch   Reason = "VERSION_MISMATCH"
	CheckFailed       Reason = "CHECK_FAILED"
	NotOwner          Reason = "NOT_OWNER"
	TxConflict        Reason = "TX_CONFLICT"
	InterfaceMissing  Reason = "INTERFACE_MISSING"
	Consistency       Reason = "CONSISTENCY"
	NamespaceDraining Reason = "NAMESPACE_DRAINING"
	Rate              Reason = "RATE"
	Bulkhead          Reason = "BULKHEAD"
	BackendDown       Reason = "BACKEND_DOWN"
	Draining          Reason = "DRAINING"
	Starting          Reason = "STARTING"
	Queue             Reason = "QUEUE"
	Pool              Reason = "POOL"
	Backend           Reason = "BACKEND"
	Client            Reason = "CLIENT"
	Method            Reason = "METHOD"
	Checksum          Reason = "CHECKSUM"
	NotACounter       Reason = "NOT_A_COUNTER"
	Counter           Reason = "COUNTER"
	SlowConsumer      Reason = "SLOW_CONSUMER"
	BreakerOpen       Reason = "BREAKER_OPEN"
	ConnectionBudget  Reason = "CONNECTION_BUDGET"
	ReadOnly          Reason = "READ_ONLY"
	OtherID           Reason = "OTHER_ID"
	Bug               Reason = "BUG"
	AlreadyThere      Reason = "EXISTS"
	Changed           Reason = "CHANGED"
	NoBackend         Reason = "NO_BACKEND"
	NotOffered        Reason = "NOT_OFFERED"
	InUse             Reason = "IN_USE"
	Snapshot          Reason = "SNAPSHOT"
	StoreDown         Reason = "STORE_DOWN"
	NotLoaded         Reason = "NOT_LOADED"
	Object            Reason = "OBJECT"
	NotLive           Reason = "NOT_LIVE"
	Quota             Reason = "QUOTA"
	Reserved          Reason = "RESERVED"
	Reservation       Reason = "RESERVATION"
	Release           Reason = "RELEASE"
	TakenBack         Reason = "TAKEN_BACK"

	NoCredentials          Reason = "NO_CREDENTIALS"
	TokenExpired           Reason = "TOKEN_EXPIRED"
	TokenInvalid           Reason = "TOKEN_INVALID"
	IssuerUnknown          Reason = "ISSUER_UNKNOWN"
	CertInvalid            Reason = "CERT_INVALID"
	Operation              Reason = "OPERATION"
	Revoked                Reason = "REVOKED"
	UnknownMethod          Reason = "UNKNOWN_METHOD"
	CredentialsUnavailable Reason = "CREDENTIALS_UNAVAILABLE"
	AuditUnavailable       Reason = "AUDIT_UNAVAILABLE"
	Session                Reason = "SESSION"
	Sessions               Reason = "SESSIONS"
)

// Outcome says whether a failed write was done all the same.
type Outcome string

// The outcomes.
const (
	NotApplied     Outcome = "not_applied"
	Applied        Outcome = "applied"
	OutcomeUnknown Outcome = "unknown"
)

// Violation is one broken rule of a request.
type Violation struct {
	// Field is the path of the field, such as changes[1].request.needs.ttl.
	Field string
	// Rule is the rule's stable id, such as namespace.pattern_or_patterns.
	Rule string
	// Text says what is wrong and what would be right.
	Text string
}

// Fault is an error whose public part may reach anyone. It does not change once returned; the With methods copy.
type Fault struct {
	Code       Code
	Reason     Reason
	Text       string            // for the caller: names no address, no credential, no other tenant
	Outcome    Outcome           // of a write; empty when it does not matter
	Metadata   map[string]string // for the caller's program
	RetryAfter time.Duration     // 0: waiting does not help
	Violations []Violation

	cause error // for the log only
}

// New makes a fault without a cause.
func New(code Code, reason Reason, text string) *Fault {
	return &Fault{Code: code, Reason: reason, Text: text}
}

// Newf is New with a formatted text.
func Newf(code Code, reason Reason, format string, args ...any) *Fault {
	return New(code, reason, fmt.Sprintf(format, args...))
}

// Wrap makes a fault of an error that the caller must not see.
func Wrap(cause error, code Code, reason Reason, text string) *Fault {
	return &Fault{Code: code, Reason: reason, Text: text, cause: cause}
}

// Error returns the public text.
func (f *Fault) Error() string { return f.Text }

// Unwrap returns the cause, which only the log may see.
func (f *Fault) Unwrap() error { return f.cause }

// WithOutcome returns a copy that tells the outcome.
func (f *Fault) WithOutcome(o Outcome) *Fault {
	c := *f
	c.Outcome = o
	return &c
}

// WithRetry returns a copy that tells after how long to try again.
func (f *Fault) WithRetry(after time.Duration) *Fault {
	c := *f
	c.RetryAfter = after
	return &c
}

// With returns a copy that carries one more piece of metadata.
func (f *Fault) With(key, value string) *Fault {
	c := *f
	c.Metadata = maps.Clone(f.Metadata)
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	c.Metadata[key] = value
	return &c
}

// WithViolations returns a copy that lists violations.
func (f *Fault) WithViolations(v []Violation) *Fault {
	c := *f
	c.Violations = v
	return &c
}

// From returns the fault in err's chain. A context error becomes Cancelled or DeadlineExceeded; anything else is a
// defect of ours: Internal, with the cause kept for the log. From(nil) is nil.
func From(err error) *Fault {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Wrap(err, Cancelled, Client, "the caller gave up")
	case errors.Is(err, context.DeadlineExceeded):
		return Wrap(err, DeadlineExceeded, Backend, "the time ran out")
	}
	return Wrap(err, Internal, Bug, "internal error")
}

// Is reports whether err is a fault with this reason.
func Is(err error, reason Reason) bool {
	f, ok := errors.AsType[*Fault](err)
	return ok && f.Reason == reason
}
