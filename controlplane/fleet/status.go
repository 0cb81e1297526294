package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
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
// reason NAMESPACE when there is no such namespace, also when it goes meanwhile, and with the reason TAKEN_BACK when there
// is none because the change that made it was taken back.
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

	a := &assessment{fleet: f, namespace: namespace, partition: partition, holds: map[ident.Hash]bool{}, unknown: map[ident.Hash]time.Time{}}
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

// sameStatus leaves out when owners were last heard of and how long a wave is held yet, which change all the time.
func sameStatus(a, b *configv1.NamespaceStatus) bool {
	without := func(s *configv1.NamespaceStatus) *configv1.NamespaceStatus {
		c := proto.CloneOf(s)
		for _, o := range c.GetOwners() {
			o.LastSeen = nil
		}
		if c.GetRelease() != nil {
			c.Release.WaitsFor = ""
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
	holds     map[ident.Hash]bool      // whether a root has the namespace in this version
	state     *release.State           // the newest that was assessed
	unknown   map[ident.Hash]time.Time // roots that neither it nor the store had, and when the store was asked
	back      takenBack
}

func (a *assessment) assess(ctx context.Context, cells map[string]*controlv1.CellState, now time.Time) (*configv1.NamespaceStatus, error) {
	name := snapshot.NamespacePrefix + a.namespace
	state := a.fleet.store.Released()
	back := a.back.newest(state, a.fleet.store.Ended(), name)
	object, ok := state.Head().Namespace(a.namespace)
	if !ok {
		if back != nil && !a.back.outdated(ctx, a.fleet.store, name, state.Head().Version()) {
			return nil, gone(a.namespace, back)
		}
		return nil, fault.Newf(fault.NotFound, fault.Namespace, "there is no namespace %q", a.namespace)
	}
	if object.Hash != a.version {
		a.version = object.Hash
		clear(a.holds)
	}
	if state != a.state {
		a.state = state
		clear(a.unknown)
	}
	status := &configv1.NamespaceStatus{
		Namespace: a.namespace, Version: object.Hash.String(), SnapshotVersion: state.Head().Version(),
	}
	pending, isPending := state.Of(name)
	if isPending {
		status.Release = releaseStatus(pending, now)
	}
	owners, _, _ := a.fleet.Owners(a.partition)
	wants := a.wants(state.Head())
	var wanting []string
	for rank, m := range owners {
		o := &configv1.OwnerStatus{Proxy: m.GetId(), Address: m.GetAddress(), Rank: uint32(rank)}
		a.owner(ctx, state, pending, wants, o, cells[m.GetId()], now)
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
	// What came later and is live is what the reader wants to know of.
	if back != nil && (!status.Live || !a.back.outdated(ctx, a.fleet.store, name, state.Head().Version())) {
		status.TakenBack = back
	}
	return status, nil
}

// releaseStatus says how far a release is that a namespace is pending in.
func releaseStatus(r *recordv1.Release, now time.Time) *configv1.ReleaseStatus {
	s := &configv1.ReleaseStatus{
		Snapshot: r.GetSnapshot(), State: r.GetState(), Wave: r.GetWave(), Waves: release.Waves, WaveAt: r.GetWaveAt(),
	}
	what := "its end"
	if next := int(r.GetWave()) + 1; next <= release.Waves {
		what = fmt.Sprintf("wave %d (%s)", next, release.WaveName(next))
	} else if r.GetConfirmBy() != nil {
		what = "somebody to confirm it by " + r.GetConfirmBy().AsTime().UTC().Format(time.RFC3339)
	}
	held := r.GetPolicy().GetSoak().AsDuration() - now.Sub(r.GetWaveAt().AsTime())
	switch {
	case r.GetState() == configv1.ReleaseState_RELEASE_STATE_PAUSED:
		s.WaitsFor = "somebody to resume it"
		if r.GetReason() != "" {
			s.WaitsFor += ": " + r.GetReason()
		}
	case r.GetWave() > 0 && held > 0:
		s.WaitsFor = fmt.Sprintf("%s, held %d s more", what, int(held.Seconds())+1)
	case r.GetWave() > 0:
		s.WaitsFor = fmt.Sprintf("%s, once wave %d (%s) serves it well", what, r.GetWave(), release.WaveName(int(r.GetWave())))
	default:
		s.WaitsFor = what
	}
	return s
}

// owner says how far one owner is. That other namespaces of the partition go on changing makes no difference: what counts
// is whether the root it has holds the namespace in the version wanted. pending is the release that brings that version,
// nil when all may have it.
func (a *assessment) owner(ctx context.Context, state *release.State, pending *recordv1.Release, wants map[string]ident.Hash, o *configv1.OwnerStatus, c *controlv1.CellState, now time.Time) {
	o.Build, o.LastSeen = c.GetBuild(), c.GetLastSeen()
	stage := func(s configv1.Stage, reason string) { o.Stage, o.Reason = s, o.Proxy+" "+reason }
	if silent := now.Sub(c.GetLastSeen().AsTime()); c == nil || silent > a.fleet.cfg.Lease {
		reason := a.fleet.untold(o.GetProxy())
		switch {
		case reason != "":
		case c == nil:
			reason = "has not been heard of"
		default:
			reason = fmt.Sprintf("has not been heard of for %d s", int(silent.Seconds()))
		}
		stage(configv1.Stage_STAGE_UNSPECIFIED, reason)
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
	for _, r := range c.GetRejections() {
		if hash, ok := wants[r.GetResource()]; ok && (r.GetVersion() == "" || r.GetVersion() == hash.String()) {
			refused(r)
			return
		}
	}
	rank := release.Rank(o.GetRank())
	whole := slices.IndexFunc(c.GetRejections(), func(r *configv1.Rejection) bool { return r.GetResource() == a.partition.String() })
	switch {
	case a.has(ctx, state, c.GetServingRoot()):
		a.serves(o, c, wants, stage)
	case pending != nil && !state.Reached(pending.GetSnapshot(), a.partition, rank):
		wave := state.WaveOf(pending.GetSnapshot(), a.partition, rank)
		stage(configv1.Stage_STAGE_PENDING, fmt.Sprintf("waits for wave %d of release %d (%s)", wave, pending.GetSnapshot(), release.WaveName(wave)))
	case whole >= 0:
		refused(c.GetRejections()[whole])
	case a.has(ctx, state, c.GetAcceptedRoot()):
		stage(configv1.Stage_STAGE_ACCEPTED, "has accepted it and does not report that it serves it")
	case a.has(ctx, state, c.GetSentRoot()):
		stage(configv1.Stage_STAGE_SENT, "was sent it and has not acknowledged it")
	case len(c.GetSentRoot()) == 0 && !reported(c):
		stage(configv1.Stage_STAGE_PENDING, "has no stream of configuration")
	default:
		stage(configv1.Stage_STAGE_PENDING, "waits for it to be sent")
	}
}

// serves says how an owner serves a root that has the namespace.
func (a *assessment) serves(o *configv1.OwnerStatus, c *controlv1.CellState, wants map[string]ident.Hash, stage func(configv1.Stage, string)) {
	for _, name := range c.GetDrifted() {
		if _, needed := wants[name]; needed {
			stage(configv1.Stage_STAGE_SENT, "serves something else as "+name+": it has drifted, and is sent again")
			return
		}
	}
	for _, u := range c.GetUnready() {
		if u.GetNamespace() == a.namespace {
			stage(configv1.Stage_STAGE_ACCEPTED, "cannot serve it: "+u.GetReason())
			return
		}
	}
	o.Stage = configv1.Stage_STAGE_SERVING
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
func (a *assessment) has(ctx context.Context, state *release.State, data []byte) bool {
	root, err := ident.HashFrom(data)
	if err != nil || root.IsZero() {
		return false
	}
	if root == state.Head().Collection(a.partition).Root() {
		return true
	}
	holds, known := a.holds[root]
	if known {
		return holds
	}
	if time.Since(a.unknown[root]) < retryAfter {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	m, err := a.fleet.manifest(ctx, a.partition, root)
	if err != nil {
		a.unknown[root] = time.Now()
		return false
	}
	hash, ok := m.Get(snapshot.NamespacePrefix + a.namespace)
	holds = ok && hash == a.version
	a.holds[root] = holds
	return holds
}

// manifest returns the members of a state of a partition: from what proxies are to have now, which no store may have
// where it is mixed of two snapshots, or else from the store.
func (f *Fleet) manifest(ctx context.Context, p ident.Partition, root ident.Hash) (*manifest.Manifest, error) {
	if m := f.past.find(root); m != nil {
		return m, nil
	}
	if state := f.store.Released(); state != nil {
		for _, rank := range []release.Rank{release.Validator, 0, 1, release.Other} {
			if c := state.View(p, rank).Partition; c.Root() == root {
				f.past.keep(c.Manifest())
				return c.Manifest(), nil
			}
		}
	}
	m, err := f.store.Manifest(ctx, root)
	if err == nil {
		f.past.keep(m)
	}
	return m, err
}

// past remembers manifests that were asked for last: while a change is on its way everybody asks for the same.
type past struct {
	mu     sync.Mutex // guards both
	byRoot map[ident.Hash]*manifest.Manifest
	order  []ident.Hash
}

const pastManifests = 256

func (p *past) find(root ident.Hash) *manifest.Manifest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byRoot[root]
}

func (p *past) keep(m *manifest.Manifest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.byRoot[m.Root()]; known {
		return
	}
	if len(p.order) == pastManifests {
		delete(p.byRoot, p.order[0])
		p.order = p.order[1:]
	}
	p.byRoot[m.Root()] = m
	p.order = append(p.order, m.Root())
}
