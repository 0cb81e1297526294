package fleet

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// cellKey is one partition on one proxy.
type cellKey struct {
	partition ident.Partition
	proxy     string
}

// local is what this replica knows of a partition, by proxy.
func (f *Fleet) local(p ident.Partition) map[string]*controlv1.CellState {
	cells := map[string]*controlv1.CellState{}
	for _, c := range f.tracker.Cells(p) {
		cells[c.GetProxy()] = c
	}
	f.reports.add(p, cells)
	return cells
}

// maxWatched is how many partitions one WatchCells may name.
const maxWatched = 1024

// WatchCells tells another replica what this one knows of some partitions.
func (f *Fleet) WatchCells(request *controlv1.WatchCellsRequest, stream controlv1.FleetService_WatchCellsServer) error {
	if n := len(request.GetPartitions()); n > maxWatched {
		return fault.Newf(fault.Invalid, fault.Field, "partitions: %d are too many; want %d at most", n, maxWatched)
	}
	partitions := make([]ident.Partition, 0, len(request.GetPartitions()))
	for _, p := range request.GetPartitions() {
		if err := f.checkPartition(p); err != nil {
			return fault.Newf(fault.Invalid, fault.Field, "partitions: %v", err)
		}
		partitions = append(partitions, ident.Partition(p))
	}
	pushed, stopPushed := f.tracker.Watch(partitions...)
	defer stopPushed()
	reported, stopReported := f.reports.watch(partitions)
	defer stopReported()
	refresh := time.NewTicker(f.freshness()) // that a proxy was heard of makes no signal
	defer refresh.Stop()
	sent := map[cellKey]*controlv1.CellState{}
	for first := true; ; first = false {
		if changed := f.changed(partitions, sent); len(changed) > 0 || first {
			if err := stream.Send(&controlv1.WatchCellsResponse{Cells: changed, Complete: first}); err != nil {
				return err
			}
		}
		select {
		case <-pushed:
		case <-reported:
		case <-refresh.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-f.closing.Done():
			return fault.New(fault.Unavailable, fault.Draining, "this replica is stopping").WithRetry(100 * time.Millisecond)
		}
	}
}

// changed returns the cells that differ from what was sent, and counts them as sent.
func (f *Fleet) changed(partitions []ident.Partition, sent map[cellKey]*controlv1.CellState) []*controlv1.CellState {
	var changed []*controlv1.CellState
	known := map[cellKey]bool{}
	for _, p := range partitions {
		for proxy, c := range f.local(p) {
			key := cellKey{p, proxy}
			known[key] = true
			if !f.told(sent[key], c) {
				sent[key] = c
				changed = append(changed, c)
			}
		}
	}
	for key := range sent {
		if !known[key] {
			delete(sent, key)
			changed = append(changed, &controlv1.CellState{Proxy: key.proxy, Partition: uint32(key.partition), Gone: true})
		}
	}
	return changed
}

// freshness is how much later a proxy may have been heard of than is told to other replicas. With the interval in which
// proxies report it stays well below the lease, after which a proxy counts as silent.
func (f *Fleet) freshness() time.Duration { return f.cfg.Lease / 5 }

// told reports whether a cell is near enough to what was sent of it, which may be nil.
func (f *Fleet) told(sent, now *controlv1.CellState) bool {
	seen := now.GetLastSeen()
	if sent == nil || seen.AsTime().Sub(sent.GetLastSeen().AsTime()) >= f.freshness() {
		return false
	}
	now.LastSeen = sent.GetLastSeen()
	same := proto.Equal(sent, now)
	now.LastSeen = seen
	return same
}

// view is what all replicas know of some partitions. Its goroutines end with the contexts that ask was given; wait for
// them with running.
type view struct {
	fleet   *Fleet
	parts   [][]uint32    // the partitions, as many together as one request may name
	moved   chan struct{} // signals that peers told something
	running sync.WaitGroup

	mu    sync.Mutex // guards peers, and cells and answered of each
	peers map[question]*peer
}

// question is what is asked of another replica.
type question struct {
	replica, address string
	part             int // of view.parts
}

// peer is what another replica has told.
type peer struct {
	cells    map[ident.Partition]map[string]*controlv1.CellState // by proxy
	answered bool                                                // all that it knows, or that it cannot be asked
	stop     func()
}

func (f *Fleet) newView(partitions ...ident.Partition) *view {
	v := &view{fleet: f, moved: make(chan struct{}, 1), peers: map[question]*peer{}}
	for part := range slices.Chunk(partitions, maxWatched) {
		numbers := make([]uint32, len(part))
		for i, p := range part {
			numbers[i] = uint32(p)
		}
		v.parts = append(v.parts, numbers)
	}
	return v
}

// others are the other replicas that can be asked.
func (f *Fleet) others() []*recordv1.Replica {
	return slices.DeleteFunc(f.store.Replicas(), func(r *recordv1.Replica) bool {
		return r.GetId() == f.cfg.Replica.GetId() || r.GetFleetAddress() == ""
	})
}

// ask asks replicas that were not asked yet, and forgets those that are gone.
func (v *view) ask(ctx context.Context) {
	v.mu.Lock()
	defer v.mu.Unlock()
	alive := map[question]bool{}
	for _, r := range v.fleet.others() {
		for part := range v.parts {
			q := question{replica: r.GetId(), address: r.GetFleetAddress(), part: part}
			alive[q] = true
			if v.peers[q] != nil {
				continue
			}
			asking, cancel := context.WithCancel(ctx)
			p := &peer{cells: map[ident.Partition]map[string]*controlv1.CellState{}, stop: cancel}
			v.peers[q] = p
			v.running.Go(func() { v.listen(asking, q, p) })
		}
	}
	for q, p := range v.peers {
		if !alive[q] {
			p.stop()
			delete(v.peers, q)
		}
	}
}

// listen follows one replica until ctx ends, and asks again when its stream breaks.
func (v *view) listen(ctx context.Context, q question, p *peer) {
	for ctx.Err() == nil {
		err := v.stream(ctx, q, p)
		v.mu.Lock()
		clear(p.cells) // what it said before is void
		p.answered = true
		v.mu.Unlock()
		signal(v.moved)
		if ctx.Err() == nil {
			v.fleet.log.Debug("another replica does not tell what it knows", "replica", q.replica, "error", err)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (v *view) stream(ctx context.Context, q question, p *peer) error {
	conn, err := v.fleet.dial(q.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := &controlv1.WatchCellsRequest{Partitions: v.parts[q.part]}
	stream, err := controlv1.NewFleetServiceClient(conn).WatchCells(ctx, request)
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		v.mu.Lock()
		for _, c := range response.GetCells() {
			partition := ident.Partition(c.GetPartition())
			switch cells := p.cells[partition]; {
			case c.GetGone():
				delete(cells, c.GetProxy())
			case cells == nil:
				p.cells[partition] = map[string]*controlv1.CellState{c.GetProxy(): c}
			default:
				cells[c.GetProxy()] = c
			}
		}
		p.answered = p.answered || response.GetComplete()
		v.mu.Unlock()
		signal(v.moved)
	}
}

// dial connects to another replica. The caller closes the connection.
func (f *Fleet) dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, f.cfg.DialOptions...)
}

// complete reports whether every replica that was asked has answered.
func (v *view) complete() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.peers {
		if !p.answered {
			return false
		}
	}
	return true
}

// cells merges what all replicas know of a partition, by proxy.
func (v *view) cells(p ident.Partition) map[string]*controlv1.CellState {
	merged := v.fleet.local(p)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, peer := range v.peers {
		for proxy, c := range peer.cells[p] {
			merged[proxy] = merge(merged[proxy], c)
		}
	}
	return merged
}

// merge joins what two replicas know of one cell: one may push to the proxy while the other hears its reports.
func merge(a, b *controlv1.CellState) *controlv1.CellState {
	if a == nil {
		return b
	}
	if a.GetLastSeen().AsTime().Before(b.GetLastSeen().AsTime()) {
		a, b = b, a // a is the newer
	}
	m := proto.CloneOf(a)
	if len(m.GetSentRoot()) == 0 {
		m.SentRoot, m.AcceptedRoot, m.AcceptedSharedRoot = b.GetSentRoot(), b.GetAcceptedRoot(), b.GetAcceptedSharedRoot()
	}
	if len(m.GetServingRoot()) == 0 {
		m.ServingRoot, m.ServingSharedRoot = b.GetServingRoot(), b.GetServingSharedRoot()
		m.SnapshotVersion, m.Unready = b.GetSnapshotVersion(), b.GetUnready()
	}
	if len(m.GetRejections()) == 0 {
		m.Rejections = b.GetRejections()
	}
	return m
}
