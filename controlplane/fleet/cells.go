package fleet

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// local is what this replica knows of a partition, by proxy.
func (f *Fleet) local(p ident.Partition) map[string]*controlv1.CellState {
	cells := map[string]*controlv1.CellState{}
	for _, c := range f.tracker.Cells(p) {
		cells[c.GetProxy()] = c
	}
	f.reports.add(p, cells)
	return cells
}

// changed says that this replica knows something new of a partition.
func (f *Fleet) changed(p ident.Partition) {
	f.here.mark(p)
	f.anywhere.mark(p)
}

// FollowCells tells another replica what this one knows of the partitions that it asks for.
func (f *Fleet) FollowCells(stream controlv1.FleetService_FollowCellsServer) error {
	requests := make(chan *controlv1.FollowCellsRequest)
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- m:
			case <-stream.Context().Done():
				ended <- stream.Context().Err()
				return
			}
		}
	}()
	follower := f.here.follow()
	defer f.here.end(follower)
	refresh := time.NewTicker(f.freshness()) // that a proxy was heard of makes no signal
	defer refresh.Stop()
	t := &teller{fleet: f, stream: stream, sent: map[ident.Partition]map[string]*controlv1.CellState{}}
	for {
		var err error
		select {
		case m := <-requests:
			err = t.request(follower, m)
		case <-follower.changed:
			for _, p := range f.here.take(follower) {
				t.tell(p)
			}
		case <-refresh.C:
			t.refresh()
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-f.closing.Done():
			return fault.New(fault.Unavailable, fault.Draining, "this replica is stopping").WithRetry(100 * time.Millisecond)
		}
		if err = errors.Join(err, t.flush()); err != nil {
			return err
		}
	}
}

// freshness is how much later a proxy may have been heard of than is told to other replicas. With the interval in which
// proxies report it stays well below the lease, after which a proxy counts as silent.
func (f *Fleet) freshness() time.Duration { return f.cfg.Lease / 5 }

// teller tells one replica what changes. It belongs to its handler's goroutine.
type teller struct {
	fleet  *Fleet
	stream controlv1.FleetService_FollowCellsServer
	sent   map[ident.Partition]map[string]*controlv1.CellState // by proxy; of each partition asked for

	next  controlv1.FollowCellsResponse
	bytes int   // about what next takes
	err   error // of the first message that could not be sent
}

// messageBytes is about how large a message between replicas becomes, well below what gRPC takes.
const messageBytes = 256 << 10

func (t *teller) request(follower *follower, m *controlv1.FollowCellsRequest) error {
	for _, n := range m.GetDrop() {
		p := ident.Partition(n)
		t.fleet.here.drop(follower, p)
		delete(t.sent, p)
	}
	for _, n := range m.GetAdd() {
		if err := t.fleet.checkPartition(n); err != nil {
			return fault.Newf(fault.Invalid, fault.Field, "add: %v", err)
		}
		p := ident.Partition(n)
		t.fleet.here.add(follower, p) // before it is looked at, so that nothing is missed
		now := t.fleet.local(p)
		t.sent[p] = now
		t.next.Told = append(t.next.Told, n)
		for _, c := range now { // in the same message, whatever its size: it is all that is known
			t.add(c)
		}
		t.page()
	}
	return nil
}

// tell adds the cells of a partition that differ from what was sent by more than counters.
func (t *teller) tell(p ident.Partition) {
	sent, asked := t.sent[p]
	if !asked {
		return
	}
	now := t.fleet.local(p)
	for proxy, c := range now {
		if s := sent[proxy]; s == nil || !sameCell(s, c) {
			sent[proxy] = c
			t.add(c)
		}
	}
	for proxy := range sent {
		if now[proxy] == nil {
			delete(sent, proxy)
			t.add(&controlv1.CellState{Proxy: proxy, Partition: uint32(p), Gone: true})
		}
	}
	t.page()
}

// refresh adds when proxies were last heard of, and their counters.
func (t *teller) refresh() {
	for p, sent := range t.sent {
		for proxy, c := range t.fleet.local(p) {
			s := sent[proxy]
			if s == nil || !sameCell(s, c) {
				continue // a signal of that waits
			}
			if s.GetLastSeen().AsTime().Equal(c.GetLastSeen().AsTime()) && proto.Equal(s.GetTraffic(), c.GetTraffic()) {
				continue
			}
			sent[proxy] = c
			t.add(&controlv1.CellState{Proxy: proxy, Partition: uint32(p), LastSeen: c.GetLastSeen(), Traffic: c.GetTraffic(), Counted: true})
		}
		t.page()
	}
}

func (t *teller) add(c *controlv1.CellState) {
	t.next.Cells = append(t.next.Cells, c)
	t.bytes += proto.Size(c)
}

// page sends what has come together if that is enough for a message.
func (t *teller) page() {
	if t.bytes >= messageBytes {
		t.err = errors.Join(t.err, t.flush())
	}
}

// flush sends what has come together.
func (t *teller) flush() error {
	if t.err != nil || len(t.next.GetCells()) == 0 && len(t.next.GetTold()) == 0 {
		return t.err
	}
	t.err = t.stream.Send(&t.next)
	t.next = controlv1.FollowCellsResponse{}
	t.bytes = 0
	return t.err
}

// sameCell reports whether two states of a cell tell the same, but for when the proxy was heard of and its counters.
func sameCell(a, b *controlv1.CellState) bool {
	return bytes.Equal(a.GetSentRoot(), b.GetSentRoot()) &&
		bytes.Equal(a.GetAcceptedRoot(), b.GetAcceptedRoot()) &&
		bytes.Equal(a.GetAcceptedSharedRoot(), b.GetAcceptedSharedRoot()) &&
		bytes.Equal(a.GetServingRoot(), b.GetServingRoot()) &&
		bytes.Equal(a.GetServingSharedRoot(), b.GetServingSharedRoot()) &&
		a.GetSnapshotVersion() == b.GetSnapshotVersion() && a.GetBuild() == b.GetBuild() &&
		slices.EqualFunc(a.GetRejections(), b.GetRejections(), equal) &&
		slices.EqualFunc(a.GetUnready(), b.GetUnready(), equal) &&
		slices.Equal(a.GetDrifted(), b.GetDrifted())
}

func equal[M proto.Message](a, b M) bool { return proto.Equal(a, b) }

// merge joins what two replicas know of one cell: one may push to the proxy while the other hears its reports. Neither is
// changed.
func merge(a, b *controlv1.CellState) *controlv1.CellState {
	if a == nil {
		return b
	}
	if a.GetLastSeen().AsTime().Before(b.GetLastSeen().AsTime()) {
		a, b = b, a // a is the newer
	}
	m := &controlv1.CellState{
		Proxy: a.GetProxy(), Partition: a.GetPartition(), LastSeen: a.GetLastSeen(), Build: cmp.Or(a.GetBuild(), b.GetBuild()),
		SentRoot: a.GetSentRoot(), AcceptedRoot: a.GetAcceptedRoot(), AcceptedSharedRoot: a.GetAcceptedSharedRoot(),
		ServingRoot: a.GetServingRoot(), ServingSharedRoot: a.GetServingSharedRoot(), SnapshotVersion: a.GetSnapshotVersion(),
		Unready: a.GetUnready(), Traffic: a.GetTraffic(), Drifted: a.GetDrifted(), Rejections: a.GetRejections(),
	}
	if len(m.SentRoot) == 0 {
		m.SentRoot, m.AcceptedRoot, m.AcceptedSharedRoot = b.GetSentRoot(), b.GetAcceptedRoot(), b.GetAcceptedSharedRoot()
	}
	if !reported(a) {
		m.ServingRoot, m.ServingSharedRoot = b.GetServingRoot(), b.GetServingSharedRoot()
		m.SnapshotVersion, m.Unready = b.GetSnapshotVersion(), b.GetUnready()
		m.Traffic, m.Drifted = b.GetTraffic(), b.GetDrifted()
	}
	if len(m.Rejections) == 0 {
		m.Rejections = b.GetRejections()
	}
	return m
}
