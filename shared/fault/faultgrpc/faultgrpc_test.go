package faultgrpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	commonv1 "github.com/prism-gateway/prism/protos/prism/common/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// reasons are the constants of package fault, which Go cannot list by itself.
var reasons = []fault.Reason{
	fault.Field, fault.TokenClock, fault.TokenReused, fault.PageToken, fault.PageTokenExpired, fault.TooLarge,
	fault.Namespace, fault.KeyRequired, fault.Key, fault.VersionMismatch, fault.CheckFailed, fault.NotOwner,
	fault.TxConflict, fault.InterfaceMissing, fault.Consistency, fault.NamespaceDraining, fault.Rate, fault.Bulkhead,
	fault.BackendDown, fault.Draining, fault.Starting, fault.Queue, fault.Pool, fault.Backend, fault.Client,
	fault.Method, fault.Checksum, fault.Bug, fault.AlreadyThere, fault.Changed, fault.NoBackend, fault.NotOffered,
	fault.InUse, fault.Snapshot, fault.StoreDown, fault.NotLoaded, fault.Object, fault.NotLive,
	fault.Quota, fault.Reserved, fault.Reservation, fault.Release, fault.TakenBack, fault.OtherID, fault.NotACounter,
	fault.Counter, fault.SlowConsumer, fault.BreakerOpen, fault.ConnectionBudget, fault.ReadOnly,
	fault.NoCredentials, fault.TokenExpired, fault.TokenInvalid, fault.IssuerUnknown, fault.CertInvalid, fault.Operation,
	fault.Revoked, fault.UnknownMethod, fault.CredentialsUnavailable, fault.AuditUnavailable, fault.Session, fault.Sessions,
}

func TestReasonsAreThoseOfTheProto(t *testing.T) {
	known := map[string]bool{}
	for _, r := range reasons {
		known["REASON_"+string(r)] = true
		if _, ok := commonv1.Reason_value["REASON_"+string(r)]; !ok {
			t.Errorf("fault has the reason %s, prism.common.v1.Reason does not", r)
		}
	}
	for name, number := range commonv1.Reason_value {
		if number != 0 && !known[name] {
			t.Errorf("prism.common.v1.Reason has %s, fault does not", name)
		}
	}
}

func TestAFaultSurvivesTheWire(t *testing.T) {
	for name, f := range map[string]*fault.Fault{
		"plain": fault.New(fault.NotFound, fault.Namespace, "no such namespace"),
		"everything": fault.New(fault.Conflict, fault.VersionMismatch, "changed meanwhile").
			WithOutcome(fault.NotApplied).With("version", "AAE=").WithRetry(1500 * time.Millisecond).
			WithViolations([]fault.Violation{{Field: "needs.ttl", Rule: "duration.gte", Text: "at least 1ms"}}),
	} {
		t.Run(name, func(t *testing.T) {
			got := faultgrpc.FromStatus(faultgrpc.Status(f, "r-1").Err())
			if diff := cmp.Diff(f.With(faultgrpc.RequestIDKey, "r-1"), got, cmpopts.IgnoreUnexported(fault.Fault{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if faultgrpc.FromStatus(nil) != nil || faultgrpc.Status(nil, "r").Err() != nil {
		t.Error("no fault is no error")
	}
	if f := faultgrpc.FromStatus(status.Error(codes.NotFound, "who?")); f.Code != fault.NotFound || f.Reason != "" || f.Text != "who?" {
		t.Errorf("a stranger's status became %+v", f)
	}
	if f := faultgrpc.FromStatus(context.Canceled); f.Code != fault.Cancelled {
		t.Errorf("a cancelled context became %+v", f)
	}
}

// server answers Get and Watch with what fail does.
type server struct {
	datav1.UnimplementedKeyValueServer
	fail func(context.Context) error
}

func (s server) Get(ctx context.Context, _ *datav1.GetRequest) (*datav1.GetResponse, error) {
	return &datav1.GetResponse{}, s.fail(ctx)
}

func (s server) Watch(_ *datav1.WatchRequest, stream grpc.ServerStreamingServer[datav1.WatchResponse]) error {
	return s.fail(stream.Context())
}

// sdkError stands for the error of an SDK that knows a status, whose text is not for our callers.
type sdkError struct{}

func (sdkError) Error() string { return "dial 10.0.0.7:6379 as admin" }
func (sdkError) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, "dial 10.0.0.7:6379")
}

func TestServerTellsTheFaultAndLogsTheCause(t *testing.T) {
	cause := errors.New("dial 10.0.0.7:6379: refused")
	for name, tc := range map[string]struct {
		fail func(context.Context) error
		want *fault.Fault // nil: the call succeeds
		log  []string     // all of them in one line; none: no line
	}{
		"success": {fail: func(context.Context) error { return nil }},
		"a fault without a cause is not logged": {
			fail: func(context.Context) error { return fault.New(fault.NotFound, fault.Namespace, "no such namespace") },
			want: fault.New(fault.NotFound, fault.Namespace, "no such namespace"),
		},
		"a cause is logged and not told": {
			fail: func(context.Context) error {
				return fault.Wrap(cause, fault.Unavailable, fault.BackendDown, "the backend did not answer").WithRetry(time.Second).WithOutcome(fault.OutcomeUnknown)
			},
			want: fault.New(fault.Unavailable, fault.BackendDown, "the backend did not answer").WithRetry(time.Second).WithOutcome(fault.OutcomeUnknown),
			log:  []string{`"level":"WARN"`, "call failed", "10.0.0.7", `"request_id":"mine-1"`, `"reason":"BACKEND_DOWN"`},
		},
		"any other error is ours to mend": {
			fail: func(context.Context) error { return cause },
			want: fault.New(fault.Internal, fault.Bug, "internal error"),
			log:  []string{`"level":"ERROR"`, "10.0.0.7", `"request_id":"mine-1"`},
		},
		"an SDK's status is a cause": {
			fail: func(context.Context) error { return sdkError{} },
			want: fault.New(fault.Internal, fault.Bug, "internal error"),
			log:  []string{"as admin"},
		},
		"what a connection reports is a cause": {
			fail: func(context.Context) error { return status.Error(codes.Unavailable, "dial 10.0.0.7:8980") },
			want: fault.New(fault.Internal, fault.Bug, "internal error"),
			log:  []string{"10.0.0.7"},
		},
		"a status of ours goes through": {
			fail: func(context.Context) error {
				return faultgrpc.Status(fault.New(fault.Unavailable, fault.NotOwner, "not here"), "other").Err()
			},
			want: fault.New(fault.Unavailable, fault.NotOwner, "not here").With(faultgrpc.RequestIDKey, "other"),
		},
		"a panic is told by its request id only": {
			fail: func(context.Context) error { panic("secret state") },
			want: fault.New(fault.Internal, fault.Bug, "internal error").WithOutcome(fault.OutcomeUnknown),
			log:  []string{"call panicked", "secret state", "faultgrpc_test.go", `"request_id":"mine-1"`},
		},
		"the handler knows the id": {
			fail: func(ctx context.Context) error {
				return fault.New(fault.NotFound, fault.Namespace, faultgrpc.RequestID(ctx))
			},
			want: fault.New(fault.NotFound, fault.Namespace, "mine-1"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			kv := serve(t, tc.fail, &log)
			for kind, call := range map[string]func(context.Context, ...grpc.CallOption) error{
				"unary": func(ctx context.Context, o ...grpc.CallOption) error {
					_, err := kv.Get(ctx, &datav1.GetRequest{}, o...)
					return err
				},
				"stream": func(ctx context.Context, o ...grpc.CallOption) error {
					stream, err := kv.Watch(ctx, &datav1.WatchRequest{}, o...)
					if err != nil {
						return err
					}
					if _, err = stream.Recv(); errors.Is(err, io.EOF) {
						return nil
					}
					return err
				},
			} {
				log.Reset()
				var trailer metadata.MD
				err := call(metadata.AppendToOutgoingContext(t.Context(), faultgrpc.RequestIDHeader, "mine-1"), grpc.Trailer(&trailer))
				if tc.want == nil {
					if err != nil {
						t.Errorf("%s: %v", kind, err)
					}
					continue
				}
				want := tc.want
				if want.Metadata == nil {
					want = want.With(faultgrpc.RequestIDKey, "mine-1")
				}
				if diff := cmp.Diff(want, faultgrpc.FromStatus(err), cmpopts.IgnoreUnexported(fault.Fault{})); diff != "" {
					t.Errorf("%s: %s", kind, diff)
				}
				if got := trailer.Get(faultgrpc.RequestIDHeader); len(got) != 1 || got[0] != "mine-1" {
					t.Errorf("%s: the trailer has %q", kind, got)
				}
				if lines := strings.Count(log.String(), "\n"); lines != min(len(tc.log), 1) {
					t.Errorf("%s: %d log lines: %s", kind, lines, log.String())
				}
				for _, part := range tc.log {
					if !strings.Contains(log.String(), part) {
						t.Errorf("%s: the log lacks %s: %s", kind, part, log.String())
					}
				}
			}
		})
	}
}

func TestRequestIDsFromOutsideAreChecked(t *testing.T) {
	kv := serve(t, func(context.Context) error { return fault.New(fault.NotFound, fault.Namespace, "no") }, &bytes.Buffer{})
	for name, tc := range map[string]struct {
		id   string
		kept bool
	}{
		"a uuid":         {"0b8f7c2e-7d0a-4b7e-9c53-3f1a", true},
		"empty":          {"", false},
		"with spaces":    {"a b", false},
		"a line break":   {"a\\nb", false},
		"longer than 64": {strings.Repeat("a", 65), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := kv.Get(metadata.AppendToOutgoingContext(t.Context(), faultgrpc.RequestIDHeader, tc.id), &datav1.GetRequest{})
			got := faultgrpc.FromStatus(err).Metadata[faultgrpc.RequestIDKey]
			if (got == tc.id) != tc.kept || got == "" {
				t.Errorf("%q became %q", tc.id, got)
			}
		})
	}
}

func TestRequestIDIsEmptyOutsideOfACall(t *testing.T) {
	if got := faultgrpc.RequestID(t.Context()); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestAStatusIsBuiltOfTheStandardDetails(t *testing.T) {
	st := faultgrpc.Status(fault.New(fault.Invalid, fault.Field, "1 field is wrong").
		WithViolations([]fault.Violation{{Field: "id", Rule: "bytes.min_len", Text: "must not be empty"}}), "r")
	info, bad := st.Details()[0].(*errdetails.ErrorInfo), st.Details()[1].(*errdetails.BadRequest)
	if info.GetDomain() != "prism" || info.GetReason() != "FIELD" || bad.GetFieldViolations()[0].GetReason() != "bytes.min_len" {
		t.Errorf("got %v", st.Details())
	}
}

func TestASuccessfulCallCostsOneAllocation(t *testing.T) {
	unary := faultgrpc.Unary(slog.New(slog.DiscardHandler))
	next := func(context.Context, any) (any, error) { return nil, nil }
	info := &grpc.UnaryServerInfo{FullMethod: "/x/Y"}
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(faultgrpc.RequestIDHeader, "mine"))
	if n := testing.AllocsPerRun(100, func() { _, _ = unary(ctx, nil, info, next) }); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}

// serve runs a real server on a loopback port.
func serve(t *testing.T, fail func(context.Context) error, log *bytes.Buffer) datav1.KeyValueClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := grpc.NewServer(grpc.UnaryInterceptor(faultgrpc.Unary(logger)), grpc.StreamInterceptor(faultgrpc.Stream(logger)))
	datav1.RegisterKeyValueServer(s, server{fail: fail})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return datav1.NewKeyValueClient(conn)
}

// TestManyFailuresOfOneReasonAreFewLines has calls fail as fast as they can.
func TestManyFailuresOfOneReasonAreFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		intercept := faultgrpc.Unary(slog.New(slog.NewJSONHandler(&log, nil)))
		lines := func(calls int, reason fault.Reason) int {
			t.Helper()
			log.Reset()
			for range calls {
				_, err := intercept(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/s/m"}, func(context.Context, any) (any, error) {
					return nil, fault.Wrap(errors.New("cause"), fault.Unavailable, reason, "down")
				})
				if faultgrpc.FromStatus(err).Reason != reason {
					t.Fatalf("answered %v", err)
				}
			}
			return strings.Count(log.String(), "call failed")
		}
		if n := lines(1000, fault.BackendDown); n < 1 || n > 10 {
			t.Fatalf("%d lines of 1000 calls in no time, want a few", n)
		}
		if n := lines(1, fault.Draining); n != 1 {
			t.Errorf("%d lines of another reason, want 1", n)
		}
		time.Sleep(time.Second)
		if n := lines(1, fault.BackendDown); n != 1 || !strings.Contains(log.String(), `"left_out":995`) {
			t.Errorf("a second later: %s", log.String())
		}
		if lines(1, fault.BackendDown); strings.Contains(log.String(), "left_out") {
			t.Errorf("counted twice: %s", log.String())
		}
	})
}
