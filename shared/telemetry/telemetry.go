// Package telemetry is how the programs of Prism are seen: version, logs, metrics, and the names used in them.
package telemetry

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/prism-gateway/prism/shared/lifecycle"
)

// Version is the release, set by the linker.
var Version = "unknown"

// Names of log attributes. What varies in a message is one of these.
const (
	KeyAddress   = "address"
	KeyCaller    = "caller"
	KeyCode      = "code"
	KeyCount     = "count"
	KeyError     = "error"
	KeyLeftOut   = "left_out"
	KeyMethod    = "method"
	KeyName      = "name"
	KeyPart      = "part"
	KeyPartition = "partition"
	KeyProxy     = "proxy"
	KeyReason    = "reason"
	KeyReplica   = "replica"
	KeyRequestID = "request_id"
	KeyResource  = "resource"
	KeyRoot      = "root"
	KeyStack     = "stack"
	KeyVersion   = "version"
)

// Build describes the running program: release, revision when it is known, Go version.
func Build() string {
	version := Version
	if info, ok := debug.ReadBuildInfo(); ok && version == "unknown" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				version = s.Value[:min(len(s.Value), 12)]
			}
		}
	}
	return fmt.Sprintf("%s %s %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// NewLogger writes JSON lines of at least this level: debug, info, warn or error; empty is info. Secrets of package
// secret print as a placeholder.
func NewLogger(w io.Writer, level string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(cmp.Or(level, "info"))); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: least})), nil
}

// Error is the attribute for an error's text.
func Error(err error) slog.Attr { return slog.String(KeyError, err.Error()) }

// NewRegistry makes a registry with the metrics that every program has: its build, the Go runtime, the process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "prism_build_info",
		Help:        "Always 1; the labels tell which build runs.",
		ConstLabels: prometheus.Labels{"version": Version, "go": runtime.Version()},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// NewMux answers /metrics, /healthz and /readyz. The caller may add paths before it serves.
func NewMux(metrics prometheus.Gatherer, ready *lifecycle.Readiness) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", ready.ServeHealth)
	mux.HandleFunc("GET /readyz", ready.ServeReady)
	return mux
}

// Profile has a mux answer /debug/pprof/ as well. What it tells of a program is for those who run it.
func Profile(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
