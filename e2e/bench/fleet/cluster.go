package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

const (
	perChange = 10_000 // namespaces of one change, the most that one may have
	patience  = 5 * time.Minute
	team      = "bench"
	backend   = "memory-bench"
)

var backends = []*configv1.Backend{{Name: backend, Type: "memory"}}

// start starts replicas without proxies.
func (r *run) start(o harness.Options) *harness.Cluster {
	o.Proxies, o.Backends = -1, backends
	if o.Lease == 0 {
		o.Lease = 10 * time.Second
	}
	more := o.Configure
	o.Configure = func(c *bootstrapv1.AdminConfig) {
		c.Etcd.RequestTimeout = durationpb.New(15 * time.Second) // everything shares one disk
		if more != nil {
			more(c)
		}
	}
	c := harness.StartNoWait(r, o)
	c.WaitReady(patience)
	return c
}

// fleet starts simulated proxies and waits until all hold what they are to hold.
func (r *run) fleet(c *harness.Cluster, proxies int) *simulator {
	began := time.Now()
	s := r.simulate(c, "sim", proxies)
	s.settled(c)
	r.progress("%d proxies hold their partitions after %v", proxies, time.Since(began).Round(100*time.Millisecond))
	return s
}

// settled waits until all proxies are connected and no partition moves.
func (s *simulator) settled(c *harness.Cluster) {
	s.await(patience, "proxies connected", func(rep report) error {
		if rep.Connected < s.proxies {
			return fmt.Errorf("%d of %d", rep.Connected, s.proxies)
		}
		return nil
	})
	harness.Eventually(s.r, patience, "partitions settled", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := c.Admin().Operator.ListProxies(ctx, &adminv1.ListProxiesRequest{PageSize: 1})
		switch {
		case err != nil:
			return err
		case out.GetMoving() || int(out.GetTotalCount()) < s.proxies:
			return fmt.Errorf("%d proxies, moving %v", out.GetTotalCount(), out.GetMoving())
		case s.report().Cells != 3*1024:
			return fmt.Errorf("%d cells", s.report().Cells)
		}
		return nil
	})
}

// large lets an answer be as large as a change of 10,000 namespaces makes it.
var large = grpc.MaxCallRecvMsgSize(64 << 20)

// name is that of the i-th namespace.
func name(i int) string { return fmt.Sprintf("bench-%07d", i) }

// namespace is a namespace of the usual size. Another variant of it is another configuration.
func namespace(i, variant int) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{
		Namespace: name(i), Team: team, Pattern: "keyvalue",
		Description: "A namespace as teams file them, with a line or two about what it is for and whom to ask.",
		Needs: &configv1.Needs{
			Durability: configv1.Durability_DURABILITY_NONE, ReadRps: 10, WriteRps: 1, DataSize: "1MiB",
			Ttl: durationpb.New(time.Hour + time.Duration(variant)*time.Second), Interfaces: []string{"keyvalue.scan"},
		},
	}
}

// change applies namespaces as one change, again when the store does not answer, which is told. It returns the snapshot, when the
// first call began and how long it took in all.
func (r *run) change(a *harness.Admin, requests ...*configv1.NamespaceRequest) (snapshot uint64, began time.Time, took time.Duration) {
	snapshot, began, took, err := change(a, requests...)
	if err != nil {
		r.Fatalf("change: %v", err)
	}
	return snapshot, began, took
}

func change(a *harness.Admin, requests ...*configv1.NamespaceRequest) (snapshot uint64, began time.Time, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	in := &controlv1.ApplyNamespacesRequest{
		Note:    &controlv1.ChangeNote{Author: "bench", Message: "bench"},
		Changes: make([]*controlv1.NamespaceChange, len(requests)),
	}
	for i, req := range requests {
		in.Changes[i] = &controlv1.NamespaceChange{Request: req}
	}
	began = time.Now()
	for {
		out, err := a.Control.ApplyNamespaces(ctx, in, large)
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return out.GetSnapshotVersion(), began, time.Since(began), err
		}
		fmt.Fprintln(os.Stderr, "   a change is made again:", err)
		time.Sleep(100 * time.Millisecond) // as an application would wait
	}
}

// load applies namespaces, as many in a change as one may have. It returns the newest snapshot.
func (r *run) load(c *harness.Cluster, from, to int) (snapshot uint64) {
	began := time.Now()
	for ; from < to; from += perChange {
		snapshot, _, _ = r.change(c.Admin(), several(from, min(to, from+perChange), 0)...)
	}
	r.progress("%d namespaces after %v", to, time.Since(began).Round(100*time.Millisecond))
	return snapshot
}

func several(from, to, variant int) (out []*configv1.NamespaceRequest) {
	for i := from; i < to; i++ {
		out = append(out, namespace(i, variant))
	}
	return out
}

// rollback takes everything back to a snapshot.
func (r *run) rollback(a *harness.Admin, to uint64) (snapshot uint64, began time.Time, took time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began = time.Now()
	out, err := a.Operator.RollbackSnapshot(ctx, &adminv1.RollbackSnapshotRequest{
		ToVersion: to, AllowShrink: true, Note: &controlv1.ChangeNote{Author: "bench", Message: "bench"},
	}, large)
	if err != nil {
		r.Fatalf("rollback: %v", err)
	}
	return out.GetSnapshot().GetVersion(), began, time.Since(began)
}

// cpu is the processor time that a process has used.
func (r *run) cpu(p *harness.Process) time.Duration {
	d, err := harness.CPUTime(p.Pid())
	if err != nil {
		r.Fatalf("%v", err)
	}
	return d
}

func (r *run) rss(p *harness.Process) int64 {
	n, err := harness.RSS(p.Pid())
	if err != nil {
		r.Fatalf("%v", err)
	}
	return n
}

// restart starts a replica again and returns how long it took to be ready.
func (r *run) restart(a *harness.Admin) time.Duration {
	a.Kill()
	began := time.Now()
	a.Start()
	harness.Eventually(r, patience, "replica ready", a.Ready)
	return time.Since(began)
}

// metric reads one that has no labels.
func (r *run) metric(c *harness.Cluster, a *harness.Admin, name string) float64 {
	value, err := metricOf(c.Get(a.HTTPAddress, "/metrics"), name)
	if err != nil {
		r.Fatalf("%v", err)
	}
	return value
}

// metricOf finds a metric that has no labels in the text form.
func metricOf(text, name string) (float64, error) {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.New(name + ": there is no such metric")
}
