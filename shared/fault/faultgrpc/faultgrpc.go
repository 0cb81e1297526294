// Package faultgrpc carries faults over gRPC: into a status at the server, out of one at the client.
//
// A status has the public text, google.rpc.ErrorInfo (reason, domain prism, metadata with outcome and request id),
// BadRequest for violations and RetryInfo where waiting helps. The cause stays in the server's log.
package faultgrpc

import (
	"errors"
	"maps"
	"slices"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/shared/fault"
)

// Domain is the domain of every ErrorInfo of ours.
const Domain = "prism"

// Keys of ErrorInfo.metadata that have a meaning of their own.
const (
	// OutcomeKey tells whether a failed write was done.
	OutcomeKey = "outcome"
	// RequestIDKey names the call in the server's log.
	RequestIDKey = "request_id"
)

// Status makes the status of a fault. The request id may be empty. A nil fault is OK.
func Status(f *fault.Fault, requestID string) *status.Status {
	if f == nil {
		return nil
	}
	st := status.New(codes.Code(f.Code), f.Text)
	info := &errdetails.ErrorInfo{Reason: string(f.Reason), Domain: Domain, Metadata: maps.Clone(f.Metadata)}
	if info.Metadata == nil {
		info.Metadata = map[string]string{}
	}
	if f.Outcome != "" {
		info.Metadata[OutcomeKey] = string(f.Outcome)
	}
	if requestID != "" {
		info.Metadata[RequestIDKey] = requestID
	}
	details := []protoadapt.MessageV1{info}
	if len(f.Violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range f.Violations {
			bad.FieldViolations = append(bad.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: v.Field, Reason: v.Rule, Description: v.Text})
		}
		details = append(details, bad)
	}
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	full, err := st.WithDetails(details...)
	if err != nil {
		return st // only a detail that cannot be marshalled; text that is not UTF-8, say
	}
	return full
}

// FromStatus makes a fault of the error of a gRPC call: what Status put in comes out, with the request id in Metadata
// under RequestIDKey and err as the cause. A status that is not ours has no Reason. FromStatus(nil) is nil.
func FromStatus(err error) *fault.Fault {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*fault.Fault](err); ok {
		return f
	}
	st, ok := status.FromError(err)
	if !ok {
		return fault.From(err)
	}
	f := fault.Wrap(err, fault.Code(st.Code()), "", st.Message())
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() != Domain {
				continue
			}
			f.Reason = fault.Reason(detail.GetReason())
			f.Outcome = fault.Outcome(detail.GetMetadata()[OutcomeKey])
			f.Metadata = maps.Clone(detail.GetMetadata())
			delete(f.Metadata, OutcomeKey)
		case *errdetails.BadRequest:
			for _, v := range detail.GetFieldViolations() {
				f.Violations = append(f.Violations, fault.Violation{Field: v.GetField(), Rule: v.GetReason(), Text: v.GetDescription()})
			}
		case *errdetails.RetryInfo:
			f.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return f
}

// ours reports whether a status carries our ErrorInfo.
func ours(st *status.Status) bool {
	return slices.ContainsFunc(st.Details(), func(d any) bool {
		info, ok := d.(*errdetails.ErrorInfo)
		return ok && info.GetDomain() == Domain
	})
}
