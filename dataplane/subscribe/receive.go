package subscribe

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
)

func (l *loop) collection(name string) *collection {
	if name == sharedName {
		return l.shared
	}
	if p, err := ident.ParsePartition(name); err == nil && l.cells[p] != nil {
		return &l.cells[p].collection
	}
	return nil
}

// partitionOf returns the partition of a resource ns/....
func (l *loop) partitionOf(resource string) (ident.Partition, bool) {
	namespace, ok := strings.CutPrefix(resource, "ns/")
	if !ok || l.assignment == nil || l.assignment.count() == 0 {
		return 0, false
	}
	return ident.PartitionOf(namespace, l.assignment.count()), true
}

// receive takes in one response.
func (l *loop) receive(r *response) {
	a := &ack{session: l.session, typeURL: r.GetTypeUrl(), nonce: r.GetNonce(), open: 1}
	defer l.finish(a)
	l.c.metrics.updates.WithLabelValues(typeLabel(r.GetTypeUrl())).Inc()
	f := l.flows[r.GetTypeUrl()]
	if f == nil {
		a.reject("", "", "type_url", "this type was not asked for")
		return
	}
	f.open++
	f.timeouts = 0
	l.touch(f)
	if !f.answered {
		f.answered = true
		for name := range f.resumed {
			delete(f.pending, name)
		}
	}
	for _, name := range r.GetRemovedResources() {
		l.remove(f, r.GetTypeUrl(), name)
	}
	seen := make(map[string]struct{}, len(r.GetResources()))
	for _, res := range r.GetResources() {
		if _, twice := seen[res.GetName()]; twice {
			a.reject(res.GetName(), res.GetVersion(), "name", "it stands twice in one response")
			continue
		}
		seen[res.GetName()] = struct{}{}
		if r.GetTypeUrl() == AssignmentType {
			l.receiveAssignment(a, f, res)
		} else {
			l.receiveResource(a, f, res)
		}
	}
}

func (l *loop) remove(f *flow, typeURL, name string) {
	if typeURL == AssignmentType {
		delete(f.pending, name) // there is no assignment yet; one that is here stays
		return
	}
	if c := l.collection(name); c != nil && c.typeURL == typeURL {
		delete(f.pending, name)
		l.log.Warn("the control plane does not know a collection; what is here stays", telemetry.KeyName, name)
		return
	}
	if typeURL == SharedType {
		l.shared.remove(name)
	} else if p, ok := l.partitionOf(name); ok && l.cells[p] != nil {
		l.cells[p].remove(name)
	}
}

func (l *loop) receiveAssignment(a *ack, f *flow, res *discoveryv3.Resource) {
	delete(f.pending, res.GetName())
	if res.GetName() != assignmentName {
		return
	}
	next, err := l.c.cfg.Commons.assignment(res.GetResource().GetValue(), res.GetVersion())
	if err == nil && l.assignment != nil && l.assignment.count() != 0 && next.count() != l.assignment.count() {
		err = fmt.Errorf("it has %d partitions, not %d: their number never changes", next.count(), l.assignment.count())
	}
	if err != nil {
		a.reject(res.GetName(), res.GetVersion(), "", err.Error())
		return
	}
	l.assignment, l.assignmentNew = next, true
	a.open++
	l.assignmentAcks = append(l.assignmentAcks, a)
	var names []string
	for _, c := range l.reconcile() {
		names = append(names, c.name)
	}
	if len(names) > 0 {
		l.subscribe(NamespaceType, names, nil)
	}
	l.publish()
}

func (l *loop) receiveResource(a *ack, f *flow, res *discoveryv3.Resource) {
	name := res.GetName()
	if res.GetResource().GetTypeUrl() == sentinelType {
		if c := l.collection(name); c != nil && c.typeURL == a.typeURL {
			l.receiveSentinel(a, f, c, res)
		}
		return
	}
	var c *collection
	for _, alias := range res.GetAliases() {
		if found := l.collection(alias); found != nil && found.typeURL == a.typeURL {
			c = found
		}
	}
	if c == nil {
		return // of a partition that was let go
	}
	data := res.GetResource().GetValue()
	hash := ident.HashOf(data)
	switch {
	case hash.String() != res.GetVersion():
		a.reject(name, res.GetVersion(), "version", "it is not the SHA-256 of the bytes, which is "+hash.String())
		c.damage()
	case a.typeURL == NamespaceType && res.GetResource().GetTypeUrl() != NamespaceType:
		a.reject(name, res.GetVersion(), "resource.type_url", fmt.Sprintf("%q is not known to this build", res.GetResource().GetTypeUrl()))
		c.damage()
	case !c.stage(name, Object{Hash: hash, Data: data}):
		a.reject(name, res.GetVersion(), "", fmt.Sprintf("with it the change is larger than %d bytes", maxStaged))
	}
}

// receiveSentinel ends a change: the collection is verified, and goes on to Apply or is asked for again.
func (l *loop) receiveSentinel(a *ack, f *flow, c *collection, res *discoveryv3.Resource) {
	encoded := res.GetResource().GetValue()
	sentinel := &configv1.Sentinel{}
	if err := proto.Unmarshal(encoded, sentinel); err != nil {
		a.reject(c.name, res.GetVersion(), "", err.Error())
		l.scheduleResync(c, "sentinel")
		return
	}
	if c.wantFull && !sentinel.GetFull() { // sent before the resync was heard, or it is due yet
		c.reset()
		return
	}
	delete(f.pending, c.name)
	v, err := c.complete(encoded, sentinel.GetFull())
	if err == nil && res.GetVersion() != v.root().String() {
		err = fmt.Errorf("its version is not its root %q", v.root())
	}
	if err != nil {
		a.reject(c.name, res.GetVersion(), "root", err.Error())
		l.scheduleResync(c, "root")
		return
	}
	if !c.spoilt { // what others have may be the same
		v = l.c.cfg.Commons.version(v)
	}
	c.wantFull, c.resyncAt, c.attempts = false, time.Time{}, 0
	l.revision = max(l.revision, sentinel.GetStoreRevision())
	if c == l.shared {
		l.receiveShared(v)
	} else if p, err := ident.ParsePartition(c.name); err == nil {
		l.receiveCell(a, l.cells[p], v)
	}
}

// receiveShared keeps a set for the partitions that name it, and lets go on those that wait for it.
func (l *loop) receiveShared(v *version) {
	l.shared.have = v
	if _, ok := l.sets[v.root()]; !ok || len(l.lookout.spoilt[v.root()]) > 0 {
		l.sets[v.root()] = v
		delete(l.lookout.spoilt, v.root())
	}
	l.shared.spoilt = false
	l.recent = append(l.recent, v.root())
	l.recent = l.recent[max(0, len(l.recent)-recentSets):]
	l.pruneSets()
	for _, c := range l.order {
		if !c.waitingSince.IsZero() && l.sets[c.have.shared] != nil {
			c.waitingSince = time.Time{}
			l.changed[c.partition] = struct{}{}
		}
	}
	l.save()
}

// receiveCell takes a verified version of a partition. The response is acknowledged when it is in effect.
func (l *loop) receiveCell(a *ack, c *cell, v *version) {
	former, spoilt := c.have, c.spoilt
	c.have, c.spoilt = v, false
	_, changing := l.changed[c.partition]
	if former != nil && former == c.live && !changing && !spoilt && v.root() == former.root() && v.shared == former.shared &&
		v.sentinel.GetSnapshotVersion() == former.sentinel.GetSnapshotVersion() {
		c.have = former // nothing new
		return
	}
	a.open++
	c.acks = append(c.acks, a)
	if l.sets[v.shared] == nil {
		c.waitingSince = cmp.Or(c.waitingSince, time.Now())
		l.wakeAt(c.waitingSince.Add(answerTimeout))
		return
	}
	c.waitingSince = time.Time{}
	l.changed[c.partition] = struct{}{}
}
