package harness

import (
	"context"
	"net"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	take func(context.Context, *collectorv1.ExportTraceServiceRequest) error
}

// Export takes spans.
func (c collector) Export(ctx context.Context, in *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	return &collectorv1.ExportTraceServiceResponse{}, c.take(ctx, in)
}

// StartCollector receives spans as an OpenTelemetry collector does, until the test ends, and returns its URL. take is
// called by several goroutines at a time.
func StartCollector(t T, take func(context.Context, *collectorv1.ExportTraceServiceRequest) error) (url string) {
	t.Helper()
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, collector{take: take})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("collector: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return "http://" + l.Addr().String()
}
