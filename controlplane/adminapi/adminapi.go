// Package adminapi answers teams and operators: ControlPlane and AdminService over the pipeline, the snapshots and the
// fleet.
//
// A handler parses its message once, into values or a complete list of violations, lets the store commit an edit that
// the pipeline computes, and says what became of it. Errors are faults; one interceptor makes statuses of them.
package adminapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/pipeline"
	"github.com/prism-gateway/prism/controlplane/quota"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry/trace"
)

// store is the part of the snapshot store that the API needs.
type store interface {
	releases
	Head() *snapshot.Tree
	Recorded() *recordv1.Snapshot
	Own(record *recordv1.Snapshot) bool
	Commit(ctx context.Context, order release.Order, edit snapshot.Edit) (snapshot.Commit, error)
	Rollback(ctx context.Context, order release.Order, to uint64, note snapshot.Note, check func(base, target *snapshot.Tree) error) (snapshot.Commit, error)
	Object(ctx context.Context, hash ident.Hash) ([]byte, error)
	ObjectAt(ctx context.Context, version uint64, name string) (snapshot.Object, bool, error)
	Snapshot(ctx context.Context, version uint64) (*recordv1.Snapshot, error)
	Snapshots(ctx context.Context, before uint64, limit int) ([]*recordv1.Snapshot, error)
	CountSnapshots(ctx context.Context) (uint64, error)
	ReserveName(ctx context.Context, r *recordv1.NameReservation, check func(base *snapshot.Tree) error) (*recordv1.NameReservation, error)
	RenewName(ctx context.Context, name string, token ident.Hash) (*recordv1.NameReservation, error)
	ReleaseName(ctx context.Context, name string, token ident.Hash) (*recordv1.NameReservation, error)
	ReservedNames() []*recordv1.NameReservation // by name
	ReservedBy(team string) []string
	Diff(ctx context.Context, from, to uint64, after string, limit int) ([]snapshot.Difference, uint64, error)
}

// fleet is what the API tells of the proxies.
type fleet interface {
	Assignment() *configv1.Assignment
	Proxies(ctx context.Context, after string, limit int) (page []*adminv1.Proxy, total int) // by id
	Proxy(ctx context.Context, id string) (*adminv1.Proxy, []*adminv1.ProxyPartition, bool)
	Served(ctx context.Context, proxy string, at time.Time, namespace string) ([]*adminv1.ServedPartition, error)
	Owners(p ident.Partition) (owners, loading []*configv1.Member, epoch uint64)
	TakenBack(ctx context.Context, name string) *configv1.TakenBack
	Status(ctx context.Context, namespace string) (*configv1.NamespaceStatus, error)
	WatchStatus(ctx context.Context, namespace string, each func(*configv1.NamespaceStatus) (done bool)) error
}

// Config is what a Server needs.
type Config struct {
	// Store and Fleet are required.
	Store store
	Fleet fleet
	// Observe begins to follow partitions; required.
	Observe func(partitions ...ident.Partition) Observation
	// Policies say how changes go to the fleet; they must be those of the store.
	Policies release.Policies
	// InitialBackends are registered by Seed; they must be well-formed.
	InitialBackends []*configv1.Backend
	// Quotas bound what teams may have and do; the zero value bounds nothing.
	Quotas quota.Quotas
	// DrainTimeout is how long a deletion waits for the owners to stop serving; 0 means 10 s.
	DrainTimeout time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log takes what nobody waits for; nil means slog.Default().
	Log *slog.Logger
}

// Server implements ControlPlaneServer and AdminServiceServer. Its methods may be called concurrently.
type Server struct {
	controlv1.UnimplementedControlPlaneServer
	adminv1.UnimplementedAdminServiceServer

	cfg    Config
	drafts drafts
	rates  quota.Rates
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("adminapi: Config.Store is required")
	case cfg.Fleet == nil:
		return nil, errors.New("adminapi: Config.Fleet is required")
	case cfg.Observe == nil:
		return nil, errors.New("adminapi: Config.Observe is required")
	}
	for i, b := range cfg.InitialBackends {
		for _, v := range append(admission.ValidateBackend(b), admission.BackendNotOffered(b)...) {
			return nil, fmt.Errorf("adminapi: initial_backends[%d].%s: %s", i, v.Field, v.Text)
		}
	}
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 10*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg}, nil
}

// Seed registers the initial backends if nothing was ever recorded. It is called once the store is loaded, by every
// replica: the first does it.
func (s *Server) Seed(ctx context.Context) error {
	if len(s.cfg.InitialBackends) == 0 {
		return nil
	}
	_, err := s.cfg.Store.Commit(ctx, release.Order{AtOnce: true}, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		if base.Version() != 0 {
			return nil, nil
		}
		var sets []snapshot.Set
		for _, b := range s.cfg.InitialBackends {
			data, err := pipeline.Marshal(b)
			if err != nil {
				return nil, err
			}
			sets = append(sets, snapshot.Set{
				Name: snapshot.BackendPrefix + b.GetName(), Data: data, Author: "prism-admin", Message: "initial backends of the installation",
			})
		}
		return sets, nil
	})
	return err
}

// head returns the newest tree, or the fault that there is none yet.
func (s *Server) head() (*snapshot.Tree, error) {
	if tree := s.cfg.Store.Head(); tree != nil {
		return tree, nil
	}
	return nil, fault.New(fault.Unavailable, fault.NotLoaded, "this replica has not loaded its configuration yet").WithRetry(time.Second)
}

// by is who changes something and why, as the history keeps it.
type by struct{ author, message, requestID, traceParent string }

func noteOf(ctx context.Context, n *controlv1.ChangeNote) by {
	return by{author: n.GetAuthor(), message: n.GetMessage(), requestID: faultgrpc.RequestID(ctx), traceParent: trace.Parent(ctx)}
}

func (b by) set(name string, data, record []byte) snapshot.Set {
	return snapshot.Set{Name: name, Data: data, Record: record, Author: b.author, Message: b.message, RequestID: b.requestID, TraceParent: b.traceParent}
}

func (b by) note() snapshot.Note {
	return snapshot.Note{Author: b.author, Message: b.message, RequestID: b.requestID, TraceParent: b.traceParent}
}

// check holds a message against the rules that its proto states.
func check(m proto.Message) error { return invalid(constraint.Check(m)) }

// invalid is the fault of violations, nil when there are none.
func invalid(found []fault.Violation) error {
	if len(found) == 0 {
		return nil
	}
	return refusal(fault.Invalid, fault.Field, found)
}

// refusal tells the first violation in its text and lists all.
func refusal(code fault.Code, reason fault.Reason, found []fault.Violation) error {
	text := found[0].Text
	if found[0].Field != "" {
		text = found[0].Field + ": " + text
	}
	if more := len(found) - 1; more > 0 {
		text = fmt.Sprintf("%s (and %d more)", text, more)
	}
	return fault.New(code, reason, text).WithViolations(found).WithOutcome(fault.NotApplied)
}

// read decodes an object of the configuration.
func read[M any, P interface {
	*M
	proto.Message
}](name string, data []byte) (P, error) {
	m := P(new(M))
	if err := proto.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("adminapi: %s: %w", name, err)
	}
	return m, nil
}

func noNamespace(name string) error {
	return fault.Newf(fault.NotFound, fault.Namespace, "there is no namespace %q", name).WithOutcome(fault.NotApplied)
}

// changed is the fault of an optimistic lock that did not hold.
func changed(name, current string) error {
	return fault.Newf(fault.Conflict, fault.Changed, "%s changed since you read it: read it again and decide again", name).
		With("version", current).WithOutcome(fault.NotApplied)
}

// gone is changed for something that is not there at all.
func gone(name string) error {
	return fault.Newf(fault.Conflict, fault.Changed, "%s was deleted since you read it", name).WithOutcome(fault.NotApplied)
}
