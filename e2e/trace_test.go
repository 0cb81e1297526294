package e2e_test

import (
	"context"
	"encoding/hex"
	"path/filepath"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// received is a span and the program that sent it.
type received struct {
	service string
	*tracev1.Span
}

func text(attributes []*commonv1.KeyValue, key string) string {
	for _, a := range attributes {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// collect has every program that is started after it send its spans.
func collect(t *testing.T) <-chan received {
	t.Helper()
	spans := make(chan received, 1000)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", harness.StartCollector(t, func(ctx context.Context, in *collectorv1.ExportTraceServiceRequest) error {
		for _, r := range in.GetResourceSpans() {
			for _, s := range r.GetScopeSpans() {
				for _, span := range s.GetSpans() {
					select {
					case spans <- received{text(r.GetResource().GetAttributes(), "service.name"), span}:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			}
		}
		return nil
	}))
	return spans
}

// TestOneTraceFromTheRequestToEveryProxy has a traced caller change a namespace: the call on prism-admin is part of its
// trace, and so is what each owner does because of it.
func TestOneTraceFromTheRequestToEveryProxy(t *testing.T) {
	const traceID, callerID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	spans := collect(t)
	c := harness.Start(t, harness.Options{Backends: []*configv1.Backend{
		{Name: "sqlite-main", Type: "sqlite", Endpoints: []string{filepath.Join(t.TempDir(), "main.db")}},
	}})
	c.Apply(ctx, keyvalue("traced", "sqlite-main", "sqlite"))

	again := keyvalue("traced", "sqlite-main", "sqlite")
	again.Limits = &configv1.Limits{Concurrency: 7}
	traced := metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+traceID+"-"+callerID+"-01")
	if _, err := c.Admin().Control.ApplyNamespaces(traced, &controlv1.ApplyNamespacesRequest{Changes: []*controlv1.NamespaceChange{{Request: again}}}); err != nil {
		t.Fatal(err)
	}
	call, applied := received{}, map[string]received{}
	for call.Span == nil || len(applied) < len(c.Proxies) {
		select {
		case s := <-spans:
			switch {
			case hex.EncodeToString(s.GetTraceId()) != traceID:
			case s.service == "prism-admin":
				call = s
			case s.service == "prism-proxy" && s.GetName() == "apply":
				applied[text(s.GetAttributes(), "prism.proxy")] = s
			default:
				t.Errorf("a span of %s on the trace: %v", s.service, s.Span)
			}
		case <-ctx.Done():
			t.Fatalf("the call is %v, and these came into effect: %v", call.Span, applied)
		}
	}
	if call.GetName() != "prism.control.v1.ControlPlane/ApplyNamespaces" || hex.EncodeToString(call.GetParentSpanId()) != callerID {
		t.Errorf("the call is %v, want part of %s", call.Span, callerID)
	}
	for proxy, s := range applied {
		if hex.EncodeToString(s.GetParentSpanId()) != hex.EncodeToString(call.GetSpanId()) {
			t.Errorf("what %s did is not part of the call: %v", proxy, s.Span)
		}
		if s.GetEndTimeUnixNano() < call.GetStartTimeUnixNano() {
			t.Errorf("%s had it in effect before it was asked for", proxy)
		}
	}
}
