package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// Status says how far the newest version of a namespace is in effect on its owners. It fails with the reason NAMESPACE
// when there is no such namespace.
func (f *Fleet) Status(ctx context.Context, namespace string) (*configv1.NamespaceStatus, error) {
	var status *configv1.NamespaceStatus
	err := f.WatchStatus(ctx, namespace, func(s *configv1.NamespaceStatus) bool {
		status = s
		return true
	})
	return status, err
}

// WatchStatus calls told with the status of a namespace, and again whenever it has changed, until told is done or ctx
// ends, whose error is returned then. A newer version of the namespace is what is told of from then on. It fails with the
// reason NAMESPACE when there is no such namespace, also when it goes meanwhile.
func (f *Fleet) WatchStatus(ctx context.Context, namespace string, told func(*configv1.NamespaceStatus) (done bool)) error {
	tree := f.store.Head()
	if tree == nil {
		return fault.New(fault.Unavailable, fault.NotLoaded, "this replica has not loaded the configuration yet").WithRetry(time.Second)
	}
	partition := ident.PartitionOf(namespace, tree.Partitions())
	seen := f.Observe(partition)
	defer seen.Close()
	moved, stopHead := f.store.Watch()
	defer stopHead()
	assigned, stopAssigned := f.WatchAssignment()
	defer stopAssigned()
	clock := time.NewTicker(time.Second) // silence makes no signal
	defer clock.Stop()
	seen.await(ctx)

	a := &assessment{fleet: f, namespace: namespace, partition: partition, holds: map[ident.Hash]bool{}}
	var last *configv1.NamespaceStatus
	for {
		status, err := a.assess(ctx, seen.Cells(partition), time.Now())
		if err != nil {
			return err
		}
		if last == nil || !sameStatus(last, status) {
			last = status
			if told(status) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		case <-assigned:
		case <-seen.Changed():
		case <-clock.C:
		}
	}
}

// sameStatus leaves out when owners were last heard of, which changes all the time.
func sameStatus(a, b *configv1.NamespaceStatus) bool {
	without := func(s *configv1.NamespaceStatus) *configv1.NamespaceStatus {
		c := proto.CloneOf(s)
		for _, o := range c.GetOwners() {
			o.LastSeen = nil
		}
		return c
	}
	return proto.Equal(without(a), without(b))
}

// assessment works out one namespace's status again and again.
type assessment struct {
	fleet     *Fleet
	namespace string
	partition ident.Partition
	version   ident.Hash
	holds     map[ident.Hash]bool // whether a root has the namespace in this version
}

func (a *assessment) assess(ctx context.Context, cells map[string]*controlv1.CellState, now time.Time) (*configv1.NamespaceStatus, error) {
	tree := a.fleet.store.Head()
	object, ok := tree.Namespace(a.namespace)
	if !ok {
		return nil, fault.Newf(fault.NotFound, fault.Namespace, "there is no namespace %q", a.namespace)
	}
	if object.Hash != a.version {
		a.version = object.Hash
		clear(a.holds)
	}
	status := &configv1.NamespaceStatus{
		Namespace: a.namespace, Version: object.Hash.String(), SnapshotVersion: tree.Version(),
	}
	owners, _, _ := a.fleet.Owners(a.partition)
	var wanting []string
	for rank, m := range owners {
		o := &configv1.OwnerStatus{Proxy: m.GetId(), Address: m.GetAddress(), Rank: uint32(rank)}
		a.owner(ctx, tree, o, cells[m.GetId()], now)
		if o.Stage != configv1.Stage_STAGE_SERVING {
			wanting = append(wanting, o.Reason)
		}
		status.Owners = append(status.Owners, o)
	}
	switch {
	case len(owners) == 0:
		status.Summary = fmt.Sprintf("no proxy owns partition %s yet", a.partition)
	case len(wanting) == 0:
		status.Live = true
	default:
		status.Summary = fmt.Sprintf("live on %d of %d owners: %s", len(owners)-len(wanting), len(owners), strings.Join(wanting, "; "))
	}
	return status, nil
}

// owner says how far one owner is. That other namespaces of the partition go on changing makes no difference: what counts
// is whether the root it has holds the namespace in the version wanted.
func (a *assessment) owner(ctx context.Context, tree *snapshot.Tree, o *configv1.OwnerStatus, c *controlv1.CellState, now time.Time) {
	o.Build, o.LastSeen = c.GetBuild(), c.GetLastSeen()
	stage := func(s configv1.Stage, reason string) { o.Stage, o.Reason = s, o.Proxy+" "+reason }
	if c == nil {
		stage(configv1.Stage_STAGE_UNSPECIFIED, "has not been heard of")
		return
	}
	if silent := now.Sub(c.GetLastSeen().AsTime()); silent > a.fleet.cfg.Lease {
		stage(configv1.Stage_STAGE_UNSPECIFIED, fmt.Sprintf("has not been heard of for %d s", int(silent.Seconds())))
		return
	}
	refused := func(r *configv1.Rejection) {
		o.Rejection = r
		where := r.GetResource()
		if r.GetField() != "" {
			where += ": " + r.GetField()
		}
		stage(configv1.Stage_STAGE_REJECTED, fmt.Sprintf("refused %s: %s", where, r.GetReason()))
	}
	wants := a.wants(tree)
	for _, r := range c.GetRejections() {
		if hash, ok := wants[r.GetResource()]; ok && (r.GetVersion() == "" || r.GetVersion() == hash.String()) {
			refused(r)
			return
		}
	}
	whole := slices.IndexFunc(c.GetRejections(), func(r *configv1.Rejection) bool { return r.GetResource() == a.partition.String() })
	switch {
	case a.has(ctx, tree, c.GetServingRoot()):
		for _, u := range c.GetUnready() {
			if u.GetNamespace() == a.namespace {
				stage(configv1.Stage_STAGE_ACCEPTED, "cannot serve it: "+u.GetReason())
				return
			}
		}
		o.Stage = configv1.Stage_STAGE_SERVING
	case whole >= 0:
		refused(c.GetRejections()[whole])
	case a.has(ctx, tree, c.GetAcceptedRoot()):
		stage(configv1.Stage_STAGE_ACCEPTED, "has accepted it and does not report that it serves it")
	case a.has(ctx, tree, c.GetSentRoot()):
		stage(configv1.Stage_STAGE_SENT, "was sent it and has not acknowledged it")
	case len(c.GetSentRoot()) == 0 && !reported(c):
		stage(configv1.Stage_STAGE_PENDING, "has no stream of configuration")
	default:
		stage(configv1.Stage_STAGE_PENDING, "waits for it to be sent")
	}
}

// wants is what an owner must have to serve the namespace: the namespace and the backends that it is bound to, by name.
func (a *assessment) wants(tree *snapshot.Tree) map[string]ident.Hash {
	wants := map[string]ident.Hash{}
	object, _ := tree.Namespace(a.namespace)
	wants[object.Name] = object.Hash
	config := &configv1.NamespaceConfig{}
	if err := proto.Unmarshal(object.Data, config); err != nil {
		return wants // no tree holds such a thing
	}
	for _, p := range config.GetPatterns() {
		for _, b := range p.GetBindings() {
			if backend, ok := tree.Backend(b.GetBackend()); ok {
				wants[backend.Name] = backend.Hash
			}
		}
	}
	return wants
}

// reported tells whether the proxy reports the cell, whatever it serves of it.
func reported(c *controlv1.CellState) bool {
	return len(c.GetServingRoot()) > 0 || c.GetSnapshotVersion() > 0
}

// has reports whether a root has the namespace in the version wanted.
func (a *assessment) has(ctx context.Context, tree *snapshot.Tree, data []byte) bool {
	root, err := ident.HashFrom(data)
	if err != nil || root.IsZero() {
		return false
	}
	now := tree.Collection(a.partition)
	if root == now.Root() {
		return true
	}
	holds, known := a.holds[root]
	if !known {
		m, err := a.fleet.store.Manifest(ctx, root)
		if err != nil {
			return false // asked again next time
		}
		hash, ok := m.Get(snapshot.NamespacePrefix + a.namespace)
		holds = ok && hash == a.version
		a.holds[root] = holds
	}
	return holds
}
