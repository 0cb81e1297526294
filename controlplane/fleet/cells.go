package fleet

import (
	"context"
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

// WatchCells tells another replica what this one knows of some partitions.
func (f *Fleet) WatchCells(request *controlv1.WatchCellsRequest, stream controlv1.FleetService_WatchCellsServer) error {
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
			if !proto.Equal(sent[key], c) {
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

// view is what all replicas know of some partitions. Its goroutines end with the context it was made with; wait for
// them with wait.
type view struct {
	fleet      *Fleet
	partitions []ident.Partition
	moved      chan struct{} // signals that peers told something
	running    sync.WaitGroup

	mu    sync.Mutex // guards peers
	peers map[string]*peer
}

// peer is what another replica has told.
type peer struct {
	cells    map[cellKey]*controlv1.CellState
	answered bool // all that it knows, or that it cannot be asked
	stop     func()
}

func (f *Fleet) newView(partitions ...ident.Partition) *view {
	return &view{fleet: f, partitions: partitions, moved: make(chan struct{}, 1), peers: map[string]*peer{}}
}

// ask asks replicas that were not asked yet, and forgets those that are gone.
func (v *view) ask(ctx context.Context) {
	v.mu.Lock()
	defer v.mu.Unlock()
	alive := map[string]bool{}
	for _, r := range v.fleet.store.Replicas() {
		if r.GetId() == v.fleet.cfg.Replica.GetId() || r.GetFleetAddress() == "" {
			continue
		}
		alive[r.GetId()] = true
		if v.peers[r.GetId()] != nil {
			continue
		}
		asking, cancel := context.WithCancel(ctx)
		p := &peer{cells: map[cellKey]*controlv1.CellState{}, stop: cancel}
		v.peers[r.GetId()] = p
		v.running.Go(func() { v.listen(asking, r, p) })
	}
	for id, p := range v.peers {
		if !alive[id] {
			p.stop()
			delete(v.peers, id)
		}
	}
}

// listen follows one replica until ctx ends, and asks again when its stream breaks.
func (v *view) listen(ctx context.Context, r *recordv1.Replica, p *peer) {
	for ctx.Err() == nil {
		err := v.stream(ctx, r, p)
		v.mu.Lock()
		clear(p.cells) // what it said before is void
		p.answered = true
		v.mu.Unlock()
		signal(v.moved)
		if ctx.Err() == nil {
			v.fleet.log.Debug("another replica does not tell what it knows", "replica", r.GetId(), "error", err)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (v *view) stream(ctx context.Context, r *recordv1.Replica, p *peer) error {
	conn, err := grpc.NewClient("passthrough:///"+r.GetFleetAddress(), v.fleet.cfg.DialOptions...)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := &controlv1.WatchCellsRequest{}
	for _, partition := range v.partitions {
		request.Partitions = append(request.Partitions, uint32(partition))
	}
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
			key := cellKey{ident.Partition(c.GetPartition()), c.GetProxy()}
			if c.GetGone() {
				delete(p.cells, key)
			} else {
				p.cells[key] = c
			}
		}
		p.answered = p.answered || response.GetComplete()
		v.mu.Unlock()
		signal(v.moved)
	}
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
		for key, c := range peer.cells {
			if key.partition == p {
				merged[key.proxy] = merge(merged[key.proxy], c)
			}
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
