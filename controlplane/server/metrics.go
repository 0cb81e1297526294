package server

import (
	"context"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/shared/lifecycle"
)

// observe registers what this replica knows: the newest snapshot, whether it leads, and who is in the fleet.
func observe(r prometheus.Registerer, kept *store.Store) error {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, c := range []prometheus.Collector{
		gauge("prism_store_ready", "1 while the newest snapshot is loaded, verified and followed.", func() float64 { return is(kept.Ready() == nil) }),
		gauge("prism_store_leader", "1 on the replica that is elected.", func() float64 { return is(kept.Leading()) }),
		gauge("prism_store_snapshot_version", "The newest snapshot that this replica has; 0 before it has one.", func() float64 {
			if tree := kept.Head(); tree != nil {
				return float64(tree.Version())
			}
			return 0
		}),
		gauge("prism_store_namespaces", "Namespaces in the newest snapshot.", func() float64 {
			if tree := kept.Head(); tree != nil {
				return float64(tree.Len())
			}
			return 0
		}),
		gauge("prism_fleet_proxies", "Proxies that are alive.", func() float64 { return float64(len(kept.Members())) }),
		gauge("prism_fleet_replicas", "Replicas of the control plane that are alive.", func() float64 { return float64(len(kept.Replicas())) }),
		gauge("prism_fleet_moving", "1 while partitions move.", func() float64 { return is(len(kept.Placement().GetPrevious()) > 0) }),
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// following is how new the configuration here is.
func following(kept *store.Store) lifecycle.Following {
	f := lifecycle.Following{Who: "etcd", Revision: kept.Revision()}
	if f.Since, f.Heard = kept.Following(); f.Since.IsZero() {
		f.Who = ""
	}
	if tree := kept.Head(); tree != nil {
		f.Snapshot = tree.Version()
	}
	return f
}

// requests counts and times the calls of people and automation.
func requests(r prometheus.Registerer) (grpc.UnaryServerInterceptor, error) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "prism_admin_requests_total", Help: "Calls answered, by operation and gRPC status.",
	}, []string{"operation", "status"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "prism_admin_request_duration_seconds", Help: "How long calls took.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
	}, []string{"operation"})
	for _, c := range []prometheus.Collector{total, seconds} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		began := time.Now()
		out, err := handler(ctx, req)
		operation := path.Base(info.FullMethod) // a registered method: the set is closed
		total.WithLabelValues(operation, status.Code(err).String()).Inc()
		seconds.WithLabelValues(operation).Observe(time.Since(began).Seconds())
		return out, err
	}, nil
}
