// Package trace follows a change through the programs of Prism: from the request, by the snapshot, to each proxy's table.
// Spans are OpenTelemetry's and are sent by OTLP over gRPC.
//
// It is off, and then nowhere in the way, unless the standard environment variables name an endpoint.
package trace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// header is the metadata key of W3C trace contexts.
const header = "traceparent"

// scope is what spans say that made them.
const scope = "github.com/prism-gateway/prism"

// Config makes a Tracer.
type Config struct {
	// Service is the program's name and Instance its id; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say otherwise.
	Service, Instance, Version string
	// Env finds environment variables, as os.LookupEnv does. Required. OTEL_EXPORTER_OTLP_ENDPOINT or
	// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT turns tracing on; OTEL_SDK_DISABLED=true and OTEL_TRACES_EXPORTER=none turn it off.
	// What else the OpenTelemetry SDK reads, such as OTEL_TRACES_SAMPLER, it reads from the process's environment.
	Env func(name string) (value string, ok bool)
	// Logger is told when spans cannot be sent. Required.
	Logger *slog.Logger
}

// Tracer makes spans. On nil its methods do nothing: tracing is off. They may be called concurrently.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   api.Tracer
	log      *slog.Logger
}

// New makes a Tracer, or nil when tracing is off. It connects in the background. The caller closes it.
func New(cfg Config) (*Tracer, error) {
	if cfg.Env == nil || cfg.Logger == nil {
		return nil, errors.New("trace: Env and Logger are required")
	}
	if !wanted(cfg.Env) {
		return nil, nil
	}
	exporter, err := otlptracegrpc.New(context.Background()) // dials, and does not wait
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	about, err := resource.New(context.Background(), resource.WithAttributes(
		attribute.String("service.name", cfg.Service), attribute.String("service.instance.id", cfg.Instance), attribute.String("service.version", cfg.Version),
	), resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace: %w", err), exporter.Shutdown(context.Background()))
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		cfg.Logger.Warn("spans cannot be sent", "error", err.Error())
	}))
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter, sdk.WithBatchTimeout(time.Second)), sdk.WithResource(about))
	return &Tracer{provider: provider, tracer: provider.Tracer(scope), log: cfg.Logger}, nil
}

func wanted(env func(string) (string, bool)) bool {
	get := func(name string) string {
		value, _ := env(name)
		return strings.TrimSpace(value)
	}
	if strings.EqualFold(get("OTEL_SDK_DISABLED"), "true") || strings.EqualFold(get("OTEL_TRACES_EXPORTER"), "none") {
		return false
	}
	return cmp.Or(get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), get("OTEL_EXPORTER_OTLP_ENDPOINT")) != ""
}

// closing is how long Close tries to send what was not sent yet.
const closing = 2 * time.Second

// Close sends what was not sent yet, where that is quickly done, and ends the Tracer. What cannot be sent is logged and is
// no reason to fail: the spans are lost.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the last spans were not sent", "error", err.Error())
	}
}

// Unary makes a span of each call, which goes on the caller's trace where it brings one. It stands before the interceptor
// that turns errors into status. It must not be called on nil.
func (t *Tracer) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		if values := metadata.ValueFromIncomingContext(ctx, header); len(values) == 1 {
			ctx = from(ctx, values[0])
		}
		service, method, _ := strings.Cut(strings.TrimPrefix(info.FullMethod, "/"), "/")
		ctx, span := t.tracer.Start(ctx, service+"/"+method, api.WithSpanKind(api.SpanKindServer), api.WithAttributes(
			attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", method),
		))
		defer span.End()
		answer, err := handle(ctx, request)
		code := status.Code(err)
		span.SetAttributes(attribute.Int("rpc.grpc.status_code", int(code)))
		if err != nil {
			span.SetStatus(codes.Error, code.String()) // the text may name what is the caller's alone
		}
		return answer, err
	}
}

// Parent is the W3C trace context of the span that ctx is in, for those who go on with it; empty when it is in none that
// is recorded.
func Parent(ctx context.Context) string {
	if !api.SpanContextFromContext(ctx).IsSampled() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[header]
}

// from puts ctx into the span that a W3C trace context names. One that is not well-formed changes nothing.
func from(ctx context.Context, parent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{header: parent})
}

// Span is one that is over.
type Span struct {
	Name       string
	Start, End time.Time
	// Parent is the W3C trace context of the span that it is part of.
	Parent string
	// Links are those of other spans that it is the work of too.
	Links []string
	// Attributes are keys and values of type string, int, uint64 or bool, in turn.
	Attributes []any
	// Failure says why it failed; empty when it did not.
	Failure string
}

// Record sends a span that is over. One without a well-formed parent belongs to nobody's trace and is not sent.
func (t *Tracer) Record(s Span) {
	if t == nil {
		return
	}
	ctx := from(context.Background(), s.Parent)
	if !api.SpanContextFromContext(ctx).IsValid() {
		return
	}
	var links []api.Link
	for _, l := range s.Links {
		if other := api.SpanContextFromContext(from(context.Background(), l)); other.IsValid() {
			links = append(links, api.Link{SpanContext: other})
		}
	}
	_, span := t.tracer.Start(ctx, s.Name, api.WithSpanKind(api.SpanKindConsumer), api.WithTimestamp(s.Start),
		api.WithLinks(links...), api.WithAttributes(attributes(s.Attributes)...))
	if s.Failure != "" {
		span.SetStatus(codes.Error, s.Failure)
	}
	span.End(api.WithTimestamp(s.End))
}

func attributes(pairs []any) (out []attribute.KeyValue) {
	for i := 0; i+1 < len(pairs); i += 2 {
		key := attribute.Key(fmt.Sprint(pairs[i]))
		switch value := pairs[i+1].(type) {
		case uint64:
			out = append(out, key.Int64(int64(value))) // versions stay far below
		case int:
			out = append(out, key.Int(value))
		case bool:
			out = append(out, key.Bool(value))
		default:
			out = append(out, key.String(fmt.Sprint(value)))
		}
	}
	return out
}
