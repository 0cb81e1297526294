package trace_test

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

// collector receives spans as an OpenTelemetry collector does.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	spans chan *tracev1.Span
}

// Export takes spans.
func (c *collector) Export(_ context.Context, in *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	for _, r := range in.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			for _, span := range s.GetSpans() {
				c.spans <- span
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// start runs a collector and a tracer that sends to it.
func start(t *testing.T) (*trace.Tracer, *collector) {
	t.Helper()
	c := &collector{spans: make(chan *tracev1.Span, 100)}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+l.Addr().String())
	tracer, err := open(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + l.Addr().String()})
	if err != nil || tracer == nil {
		t.Fatalf("tracer %v, %v", tracer, err)
	}
	return tracer, c
}

func open(t *testing.T, env map[string]string) (*trace.Tracer, error) {
	t.Helper()
	return trace.New(trace.Config{
		Service: "prism-test", Instance: "one", Version: "v1", Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Env: func(name string) (string, bool) { value, ok := env[name]; return value, ok },
	})
}

// received closes the tracer and returns what the collector has, by name.
func received(t *testing.T, tracer *trace.Tracer, c *collector) map[string]*tracev1.Span {
	t.Helper()
	tracer.Close()
	close(c.spans)
	out := map[string]*tracev1.Span{}
	for s := range c.spans {
		out[s.GetName()] = s
	}
	return out
}

const (
	traceID  = "0af7651916cd43dd8448eb211c80319c"
	callerID = "b7ad6b7169203331"
	caller   = "00-" + traceID + "-" + callerID + "-01"
)

func TestItIsOffUnlessAnEndpointIsNamed(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"nothing is said":           {},
		"an empty endpoint":         {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
		"the SDK is turned off":     {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"traces are not to be sent": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			tracer, err := open(t, env)
			if tracer != nil || err != nil {
				t.Fatalf("tracer %v, %v; want none", tracer, err)
			}
			tracer.Record(trace.Span{Name: "nothing", Parent: caller})
			tracer.Close()
		})
	}
	if p := trace.Parent(t.Context()); p != "" {
		t.Errorf("outside of a span the parent is %q", p)
	}
}

// TestOneTraceGoesOverTwoPrograms has a call of a traced caller, and what another program does because of it later.
func TestOneTraceGoesOverTwoPrograms(t *testing.T) {
	tracer, c := start(t)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", caller))
	parent := ""
	_, err := tracer.Unary()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/prism.control.v1.ControlPlane/Apply"}, func(ctx context.Context, _ any) (any, error) {
		parent = trace.Parent(ctx)
		return nil, status.Error(codes.Aborted, "of the namespace secret-name")
	})
	if status.Code(err) != codes.Aborted {
		t.Fatalf("the answer is %v", err)
	}
	end := time.Now()
	tracer.Record(trace.Span{
		Name: "apply", Start: end.Add(-time.Millisecond), End: end, Parent: parent, Links: []string{"00-11111111111111111111111111111111-2222222222222222-01", "nonsense"},
		Attributes: []any{"prism.proxy", "proxy-1", "prism.partitions", 3, "whole", true}, Failure: "refused",
	})
	tracer.Record(trace.Span{Name: "nobody's", Start: end, End: end, Parent: "nonsense"})

	spans := received(t, tracer, c)
	call, apply := spans["prism.control.v1.ControlPlane/Apply"], spans["apply"]
	if len(spans) != 2 || call == nil || apply == nil {
		t.Fatalf("the spans are %v", spans)
	}
	if hex.EncodeToString(call.GetTraceId()) != traceID || hex.EncodeToString(call.GetParentSpanId()) != callerID {
		t.Errorf("the call is not on its caller's trace: %v", call)
	}
	if call.GetStatus().GetCode() != tracev1.Status_STATUS_CODE_ERROR || call.GetStatus().GetMessage() != "Aborted" {
		t.Errorf("the call ended with %v; want the code alone", call.GetStatus())
	}
	if hex.EncodeToString(apply.GetTraceId()) != traceID || hex.EncodeToString(apply.GetParentSpanId()) != hex.EncodeToString(call.GetSpanId()) {
		t.Errorf("what the call led to is not part of it: %v", apply)
	}
	if got := time.Duration(apply.GetEndTimeUnixNano() - apply.GetStartTimeUnixNano()); got != time.Millisecond {
		t.Errorf("it took %v", got)
	}
	if len(apply.GetLinks()) != 1 || len(apply.GetAttributes()) != 3 || apply.GetStatus().GetMessage() != "refused" {
		t.Errorf("links, attributes or status are lost: %v", apply)
	}
}

func TestACallWithoutATraceBeginsOne(t *testing.T) {
	tracer, c := start(t)
	for name, ctx := range map[string]context.Context{
		"none":        t.Context(),
		"nonsense":    metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "nonsense")),
		"not sampled": metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "00-"+traceID+"-"+callerID+"-00")),
	} {
		_, err := tracer.Unary()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/x/" + name}, func(ctx context.Context, _ any) (any, error) {
			if sampled := trace.Parent(ctx) != ""; sampled != (name != "not sampled") {
				t.Errorf("%s: the parent is %q", name, trace.Parent(ctx))
			}
			return nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	spans := received(t, tracer, c)
	if len(spans) != 2 || len(spans["x/none"].GetParentSpanId()) != 0 || spans["x/nonsense"] == nil {
		t.Errorf("the spans are %v", spans)
	}
}
