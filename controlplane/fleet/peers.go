package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// peers are the other replicas, and what they tell of the partitions that are observed here. There is one connection to
// each and one stream of cells on it, however many observe.
type peers struct {
	fleet   *Fleet
	running sync.WaitGroup

	mu     sync.Mutex              // guards all below, and of each peer what says so
	wanted map[ident.Partition]int // how many observations want a partition
	known  map[string]*peer        // by replica
}

// peer is another replica.
type peer struct {
	id, address string
	conn        *grpc.ClientConn
	stop        func()
	turn        chan struct{} // is sent to after asks has grown

	// Guarded by peers.mu.
	asks  map[ident.Partition]struct{} // partitions of which it may have to be asked something else
	cells map[ident.Partition]map[string]*controlv1.CellState
	told  map[ident.Partition]bool // wanted and told of, by this stream or one before
	mute  bool                     // it cannot be asked now, or does not answer
	alien bool                     // its build cannot be asked at all
}

// others are the other replicas that can be asked.
func (f *Fleet) others() []*recordv1.Replica {
	var others []*recordv1.Replica
	for _, r := range f.store.Replicas() {
		if r.GetId() != f.cfg.Replica.GetId() && r.GetFleetAddress() != "" {
			others = append(others, r)
		}
	}
	return others
}

// follow connects to replicas that are new, and forgets those that are gone with all that they said. Its goroutines end
// with ctx.
func (ps *peers) follow(ctx context.Context) {
	others := ps.fleet.others()
	var moved []ident.Partition
	ps.mu.Lock()
	alive := make(map[string]bool, len(others))
	for _, r := range others {
		alive[r.GetId()] = true
	}
	for id, p := range ps.known {
		if !alive[id] {
			moved = append(moved, ps.forgetLocked(p)...)
		}
	}
	for _, r := range others {
		old := ps.known[r.GetId()]
		if old != nil && old.address == r.GetFleetAddress() {
			continue
		}
		if old != nil {
			moved = append(moved, ps.forgetLocked(old)...)
		}
		conn, err := ps.fleet.dial(r.GetFleetAddress())
		if err != nil {
			ps.fleet.log.Warn("another replica's address cannot be used", "replica", r.GetId(), "error", err)
			continue
		}
		listening, stop := context.WithCancel(ctx)
		p := &peer{
			id: r.GetId(), address: r.GetFleetAddress(), conn: conn, stop: stop, turn: make(chan struct{}, 1),
			asks:  map[ident.Partition]struct{}{},
			cells: map[ident.Partition]map[string]*controlv1.CellState{}, told: map[ident.Partition]bool{},
		}
		ps.known[p.id] = p
		ps.running.Go(func() {
			defer conn.Close()
			defer stop()
			ps.listen(listening, p)
		})
	}
	ps.mu.Unlock()
	for _, partition := range moved {
		ps.fleet.anywhere.mark(partition)
	}
}

func (ps *peers) forgetLocked(p *peer) []ident.Partition {
	p.stop()
	delete(ps.known, p.id)
	var told []ident.Partition
	for partition := range p.cells {
		told = append(told, partition)
	}
	return told
}

// dial makes the connection to another replica. The caller closes it.
func (f *Fleet) dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, append([]grpc.DialOption{
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	}, f.cfg.DialOptions...)...)
}

// maxAnswer bounds what is taken of another replica: of 10,000 proxies it tells a few MiB.
const maxAnswer = 64 << 20

// want has all replicas asked for partitions, and no longer for those that nobody wants when the function is called.
func (ps *peers) want(partitions []ident.Partition) (forget func()) {
	ps.count(partitions, 1)
	return sync.OnceFunc(func() { ps.count(partitions, -1) })
}

func (ps *peers) count(partitions []ident.Partition, by int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, partition := range partitions {
		before := ps.wanted[partition]
		ps.wanted[partition] = before + by
		if before > 0 && before+by > 0 {
			continue
		}
		if before+by == 0 {
			delete(ps.wanted, partition)
		}
		for _, p := range ps.known {
			p.asks[partition] = struct{}{}
			if before > 0 {
				delete(p.cells, partition)
				delete(p.told, partition)
			}
		}
	}
	for _, p := range ps.known {
		signal(p.turn)
	}
}

// listen follows one replica until ctx ends, and again when its stream breaks. What it said stays until it says something
// else: everything bears its time.
func (ps *peers) listen(ctx context.Context, p *peer) {
	for {
		began := time.Now()
		err := ps.stream(ctx, p)
		if ctx.Err() != nil {
			return
		}
		ps.fleet.log.Debug("another replica does not tell what it knows", "replica", p.id, "error", err)
		ps.silence(p, status.Code(err) == codes.Unimplemented)
		if time.Since(began) > retryAfter {
			continue // a connection that has come of age
		}
		select {
		case <-time.After(retryAfter / 2):
		case <-ctx.Done():
			return
		}
	}
}

// silence notes that a replica cannot be asked, so that nobody waits for it: because of its build, or for now.
func (ps *peers) silence(p *peer, alien bool) {
	ps.mu.Lock()
	p.mute, p.alien = true, alien
	wanted := make([]ident.Partition, 0, len(ps.wanted))
	for partition := range ps.wanted {
		wanted = append(wanted, partition)
	}
	ps.mu.Unlock()
	for _, partition := range wanted {
		ps.fleet.anywhere.mark(partition)
	}
}

// stream follows one replica on one stream.
func (ps *peers) stream(ctx context.Context, p *peer) error {
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	stream, err := controlv1.NewFleetServiceClient(p.conn).FollowCells(ctx)
	if err != nil {
		return err
	}
	ps.mu.Lock()
	for partition := range ps.wanted {
		p.asks[partition] = struct{}{}
	}
	ps.mu.Unlock()
	signal(p.turn)
	sending.Go(func() { ps.ask(ctx, p, stream) })
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		ps.take(p, response)
	}
}

// ask tells a replica which partitions are wanted, on a new stream, until ctx ends or the stream breaks.
func (ps *peers) ask(ctx context.Context, p *peer, stream controlv1.FleetService_FollowCellsClient) {
	asked := map[ident.Partition]bool{}
	for {
		select {
		case <-p.turn:
		case <-ctx.Done():
			return
		}
		request := &controlv1.FollowCellsRequest{}
		ps.mu.Lock()
		for partition := range p.asks {
			switch wanted := ps.wanted[partition] > 0; {
			case wanted && !p.told[partition] && asked[partition]:
				// It was let go and is wanted again: it is asked for anew, as what came meanwhile was thrown away.
				request.Drop = append(request.Drop, uint32(partition))
				request.Add = append(request.Add, uint32(partition))
			case wanted && !asked[partition]:
				request.Add = append(request.Add, uint32(partition))
				asked[partition] = true
			case !wanted && asked[partition]:
				request.Drop = append(request.Drop, uint32(partition))
				delete(asked, partition)
			}
		}
		clear(p.asks)
		ps.mu.Unlock()
		if len(request.GetAdd())+len(request.GetDrop()) > 0 && stream.Send(request) != nil {
			return // the receiving side sees why
		}
	}
}

// take takes what a replica says.
func (ps *peers) take(p *peer, response *controlv1.FollowCellsResponse) {
	var moved []ident.Partition
	ps.mu.Lock()
	p.mute, p.alien = false, false
	for _, n := range response.GetTold() {
		if partition := ident.Partition(n); ps.wanted[partition] > 0 {
			p.cells[partition], p.told[partition] = map[string]*controlv1.CellState{}, true
			moved = append(moved, partition)
		}
	}
	for _, c := range response.GetCells() {
		partition := ident.Partition(c.GetPartition())
		cells := p.cells[partition]
		if cells == nil {
			continue // no longer wanted, or not told in whole yet
		}
		switch old := cells[c.GetProxy()]; {
		case c.GetGone():
			delete(cells, c.GetProxy())
		case !c.GetCounted():
			cells[c.GetProxy()] = c
		case old != nil:
			cells[c.GetProxy()] = counted(old, c)
		}
		if !c.GetCounted() {
			moved = append(moved, partition)
		}
	}
	ps.mu.Unlock()
	for _, partition := range moved {
		ps.fleet.anywhere.mark(partition)
	}
}

// counted is a cell of which only the counters are new. The old state is not changed: others may hold it.
func counted(old, c *controlv1.CellState) *controlv1.CellState {
	return &controlv1.CellState{
		Proxy: old.GetProxy(), Partition: old.GetPartition(), Build: old.GetBuild(), LastSeen: c.GetLastSeen(), Traffic: c.GetTraffic(),
		SentRoot: old.GetSentRoot(), AcceptedRoot: old.GetAcceptedRoot(), AcceptedSharedRoot: old.GetAcceptedSharedRoot(),
		ServingRoot: old.GetServingRoot(), ServingSharedRoot: old.GetServingSharedRoot(), SnapshotVersion: old.GetSnapshotVersion(),
		Rejections: old.GetRejections(), Unready: old.GetUnready(), Drifted: old.GetDrifted(),
	}
}

// add merges what the other replicas said of a partition into what this one knows.
func (ps *peers) add(partition ident.Partition, cells map[string]*controlv1.CellState) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.known {
		for proxy, c := range p.cells[partition] {
			cells[proxy] = merge(cells[proxy], c)
		}
	}
}

// untold says why nothing is heard here of a proxy that may be well: it reports to a replica of a build that cannot be
// asked, as there are while the replicas are replaced by newer ones. It is empty otherwise.
func (f *Fleet) untold(proxy string) string {
	members := f.store.Members()
	i, ok := slices.BinarySearchFunc(members, proxy, func(m *recordv1.MemberLease, id string) int {
		return strings.Compare(m.GetMember().GetId(), id)
	})
	if !ok {
		return ""
	}
	replica := members[i].GetReplica()
	f.peers.mu.Lock()
	p := f.peers.known[replica]
	alien := p != nil && p.alien
	f.peers.mu.Unlock()
	if !alien {
		return ""
	}
	build := "another build"
	for _, r := range f.store.Replicas() {
		if r.GetId() == replica && r.GetBuild() != "" {
			build += " (" + r.GetBuild() + ")"
		}
	}
	return fmt.Sprintf("reports to %s, which is of %s and cannot be asked: how far it is, is unknown", replica, build)
}

// clients are for calls to the other replicas, by id.
func (ps *peers) clients() map[string]controlv1.FleetServiceClient {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	clients := make(map[string]controlv1.FleetServiceClient, len(ps.known))
	for id, p := range ps.known {
		clients[id] = controlv1.NewFleetServiceClient(p.conn)
	}
	return clients
}

// complete reports whether every replica that answers has told of partitions.
func (ps *peers) complete(partitions []ident.Partition) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.known {
		if !p.mute && ps.lacksLocked(p, partitions) {
			return false
		}
	}
	return true
}

func (ps *peers) lacksLocked(p *peer, partitions []ident.Partition) bool {
	for _, partition := range partitions {
		if !p.told[partition] {
			return true
		}
	}
	return false
}

// giveUp has nobody wait for the replicas that have not told of partitions, until they say something.
func (ps *peers) giveUp(partitions []ident.Partition) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.known {
		if ps.lacksLocked(p, partitions) {
			p.mute = true
		}
	}
}
