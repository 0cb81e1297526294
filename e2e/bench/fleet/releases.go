package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// refused begins the names of the namespaces that every simulated proxy of the part refuses.
const refused = "refused"

// releases measures how changes go to the fleet in waves, and what becomes of those that proxies refuse. The waves have no
// soak, so that what is measured is Prism's own.
func releases(r *run) {
	inWaves := &configv1.ReleasePolicy{Soak: durationpb.New(0)}
	c := r.start(harness.Options{Configure: func(c *bootstrapv1.AdminConfig) {
		c.Release = &bootstrapv1.ReleaseConfig{Additive: inWaves, Scoped: inWaves}
	}})
	b := &changing{run: r, cluster: c, admin: c.Admins[0], variant: 1}
	b.sim = r.simulate(c, "sim", r.size.proxies, "--nack", "^"+refused+"-")
	b.sim.settled(c)
	r.size.namespaces = min(r.size.namespaces, perChange)
	snapshot, _, _ := r.change(c.Admin(), several(0, r.size.namespaces, 0)...)
	b.ended(snapshot, configv1.ReleaseState_RELEASE_STATE_DONE)
	b.settle()
	if r.wanted("W1") {
		b.waves()
	}
	if r.wanted("L8") || r.wanted("R1") {
		b.refusals()
	}
}

// ended waits until a release has ended, and returns it as the control plane tells of it then.
func (b *changing) ended(snapshot uint64, as configv1.ReleaseState) *adminv1.Release {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	watch, err := b.admin.Operator.WatchRelease(ctx, &adminv1.WatchReleaseRequest{Snapshot: snapshot})
	if err != nil {
		b.Fatalf("release %d: %v", snapshot, err)
	}
	var last *adminv1.Release
	for last.GetEndedAt() == nil {
		in, err := watch.Recv()
		if err != nil {
			b.Fatalf("release %d: %v; last: %v", snapshot, err, last)
		}
		last = in.GetRelease()
	}
	if last.GetState() != as {
		b.Fatalf("release %d ended as %v, want %v: %s", snapshot, last.GetState(), as, last.GetReason())
	}
	return last
}

// waves lets good changes go through all waves.
func (b *changing) waves() {
	const n = 5
	b.progress("W1: %d releases of 1,000 namespaces", n)
	var whole, each, last []time.Duration
	used := b.cpu(b.admin.Process)
	for i := range n {
		snapshot, began, _ := b.change(b.admin, several(0, min(1000, b.size.namespaces), 10+i)...)
		release := b.ended(snapshot, configv1.ReleaseState_RELEASE_STATE_DONE)
		whole = append(whole, release.GetEndedAt().AsTime().Sub(began))
		at := release.GetStartedAt().AsTime()
		for _, e := range release.GetEvents() {
			each, at = append(each, e.GetAt().AsTime().Sub(at)), e.GetAt().AsTime()
		}
		b.newest = snapshot
		last = append(last, b.sim.awaitSpread(patience, snapshot).Last.Sub(began))
	}
	used = (b.cpu(b.admin.Process) - used) / n
	slices.Sort(each)
	slices.Sort(last)
	b.table.add(row{id: "W1", what: "1,000 namespaces: call began → ended", d: whole, cpu: used, note: fmt.Sprintf(
		"from one event of a release to the next p50 %s, max %s; in effect on the last owner p50 %s", short(quantile(each, 0.5)), short(each[len(each)-1]), short(quantile(last, 0.5)))})
}

// refusals changes namespaces that proxies refuse. What is measured begins when the change was in effect on the first proxy, which is
// when that refuses it.
func (b *changing) refusals() {
	n := max(10, b.size.sample/60)
	b.progress("L8: %d changes that are refused", n)
	type taken struct {
		began, told, back time.Time
		snapshot          uint64
		nacks             uint64
	}
	var all []taken
	for i := range n {
		req := namespace(i, 0)
		req.Namespace = fmt.Sprintf("%s-%06d", refused, i)
		before := b.sim.report().Nacks
		snapshot, began, _ := b.change(b.admin, req)
		t := taken{began: began, snapshot: snapshot}
		t.told = b.told(req.GetNamespace(), snapshot)
		release := b.ended(snapshot, configv1.ReleaseState_RELEASE_STATE_ROLLED_BACK)
		t.back = release.GetEndedAt().AsTime()
		time.Sleep(1100 * time.Millisecond) // for the next report
		t.nacks = b.sim.report().Nacks - before
		all = append(all, t)
	}
	b.settle()
	var told, back []time.Duration
	most := uint64(0)
	for _, t := range all {
		most = max(most, t.nacks)
		if sp, ok := b.sim.spread(t.snapshot, t.snapshot); ok {
			told = append(told, t.told.Sub(sp.First))
			back = append(back, t.back.Sub(sp.First))
		}
	}
	if b.wanted("L8") {
		b.table.add(row{id: "L8", d: told})
	}
	if b.wanted("R1") {
		b.table.add(row{id: "R1", what: "refused by the first proxy → recorded as taken back", d: back, note: fmt.Sprintf(
			"at most %d of %d proxies got it (%.1f %%)", most, b.sim.proxies, 100*float64(most)/float64(b.sim.proxies))})
	}
}

// told waits until the status of a namespace says that a change of it was refused, or that there is no such namespace any more
// because its creation was taken back.
func (b *changing) told(namespace string, snapshot uint64) time.Time {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	watch, err := b.admin.Control.WatchNamespaceStatus(ctx, &controlv1.WatchNamespaceStatusRequest{Namespace: namespace, UntilSnapshot: snapshot})
	for err == nil {
		var in *controlv1.WatchNamespaceStatusResponse
		if in, err = watch.Recv(); err != nil {
			break
		}
		status := in.GetStatus()
		if status.GetTakenBack() != nil || slices.ContainsFunc(status.GetOwners(), func(o *configv1.OwnerStatus) bool { return o.GetRejection() != nil }) {
			return time.Now()
		}
	}
	if !strings.Contains(err.Error(), namespace) && !strings.Contains(err.Error(), "taken back") {
		b.Fatalf("status of %s: %v", namespace, err)
	}
	return time.Now()
}
