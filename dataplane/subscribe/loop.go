package subscribe

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
)

const (
	recentSets = 8    // shared sets that are kept although no partition refers to them yet
	maxQueue   = 1024 // requests that wait for a peer that does not read; then the stream is given up
)

// loop owns the state. All of its fields belong to the goroutine of run.
type loop struct {
	c      *Client
	log    *slog.Logger
	events chan event  // from the stream's goroutines
	done   chan result // from Apply
	saver  *saver      // nil when nothing is kept on disk
	wake   time.Time   // not after the earliest deadline; zero when there is none

	lookout lookout // over what is in effect

	stream // the conversation with the connected replica

	installation string
	foreign      map[string]string // by endpoint: the other installation that answered there last
	revision     int64

	assignment *assignment
	shared     *collection
	sets       map[ident.Hash]*version // by root
	recent     []ident.Hash            // the last sets received, newest last
	cells      map[ident.Partition]*cell
	order      []*cell // cells by partition

	changed        map[ident.Partition]struct{} // since the last Apply began
	assignmentNew  bool                         // the assignment is newer than that
	assignmentAcks []*ack
	applying       *batch // nil while Apply does not run
	refused        []*configv1.Rejection
}

// cell is one partition that this proxy has or loads.
type cell struct {
	collection
	partition    ident.Partition
	leaveAt      time.Time // when to let go; zero while it is assigned
	waitingSince time.Time // since when the shared set that have names is not here; zero when it is
	acks         []*ack    // what is acknowledged when have is in effect

	live    *version // in effect; nil until the first Apply
	applied *Partition
	refused map[string]refusal
	drifted []string // what was found not to be what it ought to be, until it is looked at again
	status  *Cell
}

// batch is what one Apply is about.
type batch struct {
	cells          map[ident.Partition]*given
	assignmentAcks []*ack
}

type given struct {
	cell      *cell
	version   *version
	partition *Partition
	refused   map[string]refusal
	acks      []*ack
}

type result struct {
	rejections []*configv1.Rejection
	took       time.Duration
}

func newLoop(c *Client, s *saved) *loop {
	l := &loop{
		c: c, log: c.log, events: make(chan event), done: make(chan result, 1),
		installation: s.installation, revision: s.revision, assignment: s.assignment,
		shared:  &collection{name: sharedName, typeURL: SharedType, have: s.shared},
		sets:    map[ident.Hash]*version{{}: nothing},
		cells:   map[ident.Partition]*cell{},
		changed: map[ident.Partition]struct{}{}, foreign: map[string]string{},
	}
	maps.Copy(l.sets, s.sets)
	if s.shared != nil { // the control plane is told of it, and takes it for received
		l.sets[s.shared.root()], l.recent = s.shared, []ident.Hash{s.shared.root()}
	}
	for p, sc := range s.cells {
		cell := l.addCell(p)
		cell.have, cell.refused = sc.version, sc.refused
		l.changed[p] = struct{}{}
	}
	if l.assignment != nil {
		l.assignmentNew = true
		l.reconcile()
	}
	return l
}

// applySaved puts in effect what was on disk.
func (l *loop) applySaved(ctx context.Context) {
	l.startApply(ctx)
	if l.applying != nil {
		l.finishApply(<-l.done)
	} else {
		l.publish() // of what installation it is
	}
}

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	if l.c.cfg.Check != nil {
		l.lookout.at = time.Now().Add(lookEvery)
	}
	for {
		var out chan<- *request
		var next *request
		if l.session != nil && len(l.queue) > 0 {
			out, next = l.session.out, l.queue[0]
		}
		select {
		case <-ctx.Done():
			if l.applying != nil {
				l.finishApply(<-l.done)
			}
			if l.session != nil {
				l.save() // when the last contact was
			}
			return
		case e := <-l.events:
			l.handle(e)
		case out <- next:
			l.queue = l.queue[1:]
		case r := <-l.done:
			l.finishApply(r)
			l.save()
		case <-timer.C:
			l.tick(time.Now())
		}
		l.startApply(ctx)
		if !l.wake.IsZero() {
			timer.Reset(time.Until(l.wake))
		}
	}
}

// wakeAt has tick run not later than at t.
func (l *loop) wakeAt(t time.Time) {
	if l.wake.IsZero() || t.Before(l.wake) {
		l.wake = t
	}
}

// tick does what is due.
func (l *loop) tick(now time.Time) {
	l.wake = time.Time{}
	due := func(at time.Time) bool {
		if at.IsZero() {
			return false
		}
		if at.After(now) {
			l.wakeAt(at)
			return false
		}
		return true
	}
	for _, cell := range slices.Clone(l.order) {
		if due(cell.leaveAt) {
			l.release(cell)
			continue
		}
		if l.session != nil && !cell.waitingSince.IsZero() && due(cell.waitingSince.Add(answerTimeout)) {
			l.giveUpWaiting(cell)
		}
		if due(cell.resyncAt) {
			l.resync(&cell.collection)
		}
	}
	if due(l.shared.resyncAt) {
		l.resync(l.shared)
	}
	l.checkAnswers(due)
	if due(l.lookout.at) {
		l.look(now)
	}
}

// giveUpWaiting asks anew for a partition and the shared set that it names, which did not come.
func (l *loop) giveUpWaiting(c *cell) {
	l.log.Warn("a partition names a shared set that does not come", telemetry.KeyPartition, c.name, telemetry.KeyRoot, c.have.shared.String())
	for _, a := range c.acks {
		a.reject(c.name, c.have.root().String(), "shared_root", "the shared set that it names did not come")
	}
	c.have, c.waitingSince = c.live, time.Time{}
	l.settle(c)
	l.scheduleResync(&c.collection, "shared_root")
	if l.shared.resyncAt.IsZero() {
		l.scheduleResync(l.shared, "shared_root")
	}
}

func (l *loop) addCell(p ident.Partition) *cell {
	c := &cell{collection: collection{name: p.String(), typeURL: NamespaceType}, partition: p}
	l.cells[p] = c
	at, _ := slices.BinarySearchFunc(l.order, p, func(c *cell, p ident.Partition) int { return cmp.Compare(c.partition, p) })
	l.order = slices.Insert(l.order, at, c)
	return c
}

// reconcile makes the cells those that the assignment gives this proxy. One that moved away stays for the release delay;
// one that nobody else owns stays for good, so that an empty assignment takes nothing away. It returns the new ones.
func (l *loop) reconcile() (added []*cell) {
	a := l.assignment
	for p := range a.partitions() {
		cell := l.cells[p]
		switch mine := a.mine(p, l.c.cfg.Node); {
		case mine && cell == nil:
			added = append(added, l.addCell(p))
		case cell == nil:
		case mine || !a.owned(p):
			cell.leaveAt = time.Time{}
		case cell.leaveAt.IsZero():
			cell.leaveAt = time.Now().Add(l.c.cfg.ReleaseDelay)
			l.wakeAt(cell.leaveAt)
		}
		if cell != nil && cell.status != nil && cell.status.Leaving == cell.leaveAt.IsZero() {
			l.updateStatus(cell)
		}
	}
	return added
}

// release lets go of a partition that moved away.
func (l *loop) release(c *cell) {
	l.log.Info("partition let go", telemetry.KeyPartition, c.name)
	l.unsubscribe(&c.collection)
	delete(l.cells, c.partition)
	l.order = slices.DeleteFunc(l.order, func(o *cell) bool { return o == c })
	l.settle(c)
	if c.live != nil || l.applying != nil {
		l.changed[c.partition] = struct{}{}
	}
	l.publish()
}

// settle counts what waited for the cell's newest version as done.
func (l *loop) settle(c *cell) {
	acks := c.acks
	c.acks = nil
	for _, a := range acks {
		l.finish(a)
	}
}

// startApply gives Apply what has changed, unless it runs or nothing has.
func (l *loop) startApply(ctx context.Context) {
	if l.applying != nil || len(l.changed) == 0 && !l.assignmentNew {
		return
	}
	b := &batch{cells: make(map[ident.Partition]*given, len(l.changed)), assignmentAcks: l.assignmentAcks}
	state := State{
		Partitions: make(map[ident.Partition]*Partition, len(l.cells)),
		Shared:     map[ident.Hash]map[string]Object{{}: nothing.members},
	}
	if l.assignment != nil {
		state.Assignment, state.Epoch = l.assignment.message, l.assignment.message.GetEpoch()
	}
	for _, p := range slices.Sorted(maps.Keys(l.changed)) {
		c := l.cells[p]
		switch {
		case c == nil || c.have == nil && c.live == nil: // gone
			state.Changed = append(state.Changed, p)
		case c.have != nil && l.sets[c.have.shared] != nil:
			state.Changed = append(state.Changed, p)
			b.cells[p] = l.give(c)
		}
	}
	for _, c := range l.order {
		p := c.applied
		if g := b.cells[c.partition]; g != nil {
			p = g.partition
		}
		if p != nil {
			state.Partitions[c.partition] = p
			if _, ok := state.Shared[p.SharedRoot]; !ok {
				state.Shared[p.SharedRoot] = l.sets[p.SharedRoot].members
			}
		}
	}
	clear(l.changed)
	l.assignmentNew, l.assignmentAcks = false, nil
	l.applying = b
	go func() {
		start := time.Now()
		rejections := l.c.cfg.Apply(ctx, state)
		l.done <- result{rejections: rejections, took: time.Since(start)}
	}()
}

// give takes a cell's newest version into a batch.
func (l *loop) give(c *cell) *given {
	g := &given{cell: c, version: c.have, acks: c.acks}
	c.acks = nil
	g.partition, g.refused = effective(c.have, c.refused)
	return g
}

// finishApply records what is in effect now, and acknowledges it.
func (l *loop) finishApply(r result) {
	b := l.applying
	l.applying = nil
	l.c.metrics.applySeconds.Observe(r.took.Seconds())
	others := l.recordRejections(b, r.rejections)
	l.recordOthers(b, others)
	l.trace(b, r.took)
	for _, g := range b.cells {
		for _, a := range g.acks {
			a.rejections = append(a.rejections, others...)
			l.finish(a)
		}
		c := g.cell
		l.c.arrived(c.applied, g.partition, l.began)
		c.live, c.applied, c.refused = g.version, g.partition, g.refused
		if l.cells[c.partition] != c { // let go while Apply ran
			l.changed[c.partition] = struct{}{}
			continue
		}
		l.updateStatus(c)
	}
	for _, a := range b.assignmentAcks {
		l.finish(a)
	}
	l.publish()
}

// recordRejections notes what Apply refused of namespaces and returns the other rejections.
func (l *loop) recordRejections(b *batch, rejections []*configv1.Rejection) (others []*configv1.Rejection) {
	for _, r := range rejections {
		g := l.givenFor(b, r.GetResource())
		if g == nil {
			others = append(others, r)
			continue
		}
		name := r.GetResource()
		shown := g.partition.Members[name]
		if r.Version == "" {
			r.Version = shown.Hash.String()
		}
		received := g.version.members[name]
		entry := refusal{hash: received.Hash, shared: g.version.shared, rejection: r}
		if old := g.cell.applied; old != nil && shown.Hash == received.Hash {
			if good, ok := old.Members[name]; ok {
				entry.good = &good
			}
		}
		g.refused[name] = entry
		for _, a := range g.acks {
			a.rejections = append(a.rejections, r)
		}
	}
	for _, g := range b.cells {
		p := *g.partition // Apply may have kept the one that it was given
		p.Members = substitute(g.version.members, g.refused)
		g.partition = &p
	}
	return others
}

// givenFor returns the partition of the batch in which the resource stands, nil when there is none.
func (l *loop) givenFor(b *batch, resource string) *given {
	p, ok := l.partitionOf(resource)
	if !ok {
		return nil
	}
	g := b.cells[p]
	if g == nil {
		return nil
	}
	if _, ok := g.partition.Members[resource]; !ok {
		return nil
	}
	return g
}

// recordOthers notes what Apply refused of shared objects, for people: with each Apply that looked at any.
func (l *loop) recordOthers(b *batch, others []*configv1.Rejection) {
	if len(b.cells) > 0 {
		l.refused = others
	}
}

// pruneSets forgets shared sets that nothing refers to. It is done when another one comes.
func (l *loop) pruneSets() {
	used := map[ident.Hash]bool{{}: true}
	for _, root := range l.recent {
		used[root] = true
	}
	if l.shared.have != nil {
		used[l.shared.have.root()] = true
	}
	for _, c := range l.order {
		for _, v := range []*version{c.have, c.live} {
			if v != nil {
				used[v.shared] = true
			}
		}
	}
	if l.applying != nil { // what goes into effect now, though newer versions may have come
		for _, g := range l.applying.cells {
			used[g.version.shared] = true
		}
	}
	maps.DeleteFunc(l.sets, func(root ident.Hash, _ *version) bool { return !used[root] })
}

func (l *loop) updateStatus(c *cell) {
	if c.applied == nil {
		return
	}
	s := &Cell{
		Partition: c.partition, Root: c.applied.Root, SharedRoot: c.applied.SharedRoot, Snapshot: c.applied.Snapshot,
		CommittedAt: c.applied.CommittedAt, Members: len(c.applied.Members), Leaving: !c.leaveAt.IsZero(),
		Drifted: c.drifted,
	}
	for _, name := range slices.Sorted(maps.Keys(c.refused)) {
		s.Rejections = append(s.Rejections, c.refused[name].rejection)
	}
	c.status = s
}

// publish shows what is in effect to Status and to the fleet.
func (l *loop) publish() {
	v := &view{installation: l.installation, revision: l.revision, refused: l.refused}
	if l.assignment != nil {
		v.assigned, v.epoch = true, l.assignment.message.GetEpoch()
	}
	v.cells = make([]*Cell, 0, len(l.order))
	for _, c := range l.order {
		if c.status != nil {
			v.cells = append(v.cells, c.status)
		} else {
			v.missing = append(v.missing, c.partition)
		}
	}
	l.c.view.Store(v)
	l.c.Notify()
}

// save has what is in effect written to disk.
func (l *loop) save() {
	if l.saver == nil {
		return
	}
	s := &saved{
		node: l.c.cfg.Node.ID, installation: l.installation, revision: l.revision, lastContact: time.Now(),
		assignment: l.assignment, shared: l.shared.have, sets: map[ident.Hash]*version{}, order: make([]savedCell, 0, len(l.order)),
	}
	if l.session == nil {
		s.lastContact = time.Unix(0, cmp.Or(l.c.stale.Load(), s.lastContact.UnixNano()))
	}
	for _, c := range l.order {
		if c.live == nil {
			continue
		}
		s.order = append(s.order, savedCell{partition: c.partition, version: c.live, refused: c.refused})
		s.sets[c.live.shared] = l.sets[c.live.shared]
	}
	l.saver.put(s)
}
