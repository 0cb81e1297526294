package subscribe

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
)

const (
	firstHeartbeat = 5 * time.Second        // until the replica says how often
	minHeartbeat   = 100 * time.Millisecond // whatever the replica says
	farewell       = time.Second            // for the replica to hear that a proxy leaves in good order
	maxUnanswered  = 2                      // heartbeats without an answer before another replica is reported to
)

var errSilent = errors.New("the replica does not answer")

// report keeps a report stream to one of the endpoints until ctx ends: to the one that pushes, where there is one.
func (c *Client) report(ctx context.Context) {
	endpoints := c.shuffled()
	silent := "" // the endpoint that was left because it did not answer
	for attempt, next := 0, 0; ; next++ {
		endpoint := endpoints[next%len(endpoints)]
		if connected := c.endpoint.Load(); connected != nil && attempt == 0 {
			endpoint = *connected
		}
		if endpoint == silent && len(endpoints) > 1 {
			next++
			endpoint = endpoints[next%len(endpoints)]
		}
		begun := time.Now()
		answered, err := c.reportTo(ctx, endpoint)
		if ctx.Err() != nil {
			return
		}
		if answered {
			attempt = afterAnswers(attempt, begun)
		}
		if silent = ""; errors.Is(err, errSilent) {
			silent = endpoint
		}
		c.log.Warn("the report to the fleet ended", telemetry.KeyAddress, endpoint, telemetry.KeyError, err)
		if !pause(ctx, retryAfter(err, attempt)) {
			return
		}
		attempt++
	}
}

// reportTo reports on one stream until it ends. It tells whether the replica answered. When run ends, it says once more how
// things stand and closes the stream in good order, so that a proxy that has drained is out of the fleet at once.
func (c *Client) reportTo(run context.Context, endpoint string) (answered bool, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(run)) // so that there is time for a last word
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()
	conn, err := c.dial(endpoint)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	connected := context.AfterFunc(run, cancel)
	if id := c.view.Load().installation; id != "" { // so that another installation's fleet does not take this proxy in
		ctx = metadata.AppendToOutgoingContext(ctx, installationHeader, id)
	}
	stream, err := controlv1.NewFleetServiceClient(conn).Report(ctx)
	if err != nil {
		return false, err
	}
	connected()
	leaving := context.AfterFunc(run, func() { time.AfterFunc(farewell, cancel) }) // also while a replica that does not read blocks Send
	defer leaving()
	heartbeats := make(chan time.Duration)
	ended := make(chan error, 1)
	receiver.Go(func() { ended <- receiveHeartbeats(ctx, stream, heartbeats) })

	every := firstHeartbeat
	timer := time.NewTimer(0)
	defer timer.Stop()
	sent := told{}
	answers, unanswered := 0, 0
	for {
		beat := false
		select {
		case <-c.notify:
		case <-timer.C:
			if answers != 1 && unanswered >= maxUnanswered { // former builds answer the first report only
				return answered, errSilent
			}
			timer.Reset(every)
			beat = true
			unanswered++
		case d := <-heartbeats:
			c.heard.Store(time.Now().UnixNano())
			answers, unanswered = answers+1, 0
			if d = max(d, minHeartbeat); !answered || d != every {
				answered, every = true, d
				timer.Reset(every)
			}
			continue
		case err := <-ended:
			return answered, err
		case <-run.Done():
			if stream.Send(c.reportRequest(sent, true)) == nil && stream.CloseSend() == nil {
				for err == nil {
					select {
					case <-heartbeats:
					case err = <-ended:
					}
				}
			}
			return answered, run.Err()
		}
		unread := time.AfterFunc(maxUnanswered*every, cancel) // a replica that does not read blocks Send
		err := stream.Send(c.reportRequest(sent, beat))
		if !unread.Stop() {
			return answered, errSilent
		}
		if err != nil {
			return answered, <-ended
		}
	}
}

func receiveHeartbeats(ctx context.Context, stream grpc.BidiStreamingClient[controlv1.ReportRequest, controlv1.ReportResponse], to chan<- time.Duration) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		every := r.GetHeartbeat().AsDuration()
		if every <= 0 {
			every = firstHeartbeat
		}
		select {
		case to <- every:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// told is what a report stream has been told, by partition.
type told map[ident.Partition]toldCell

type toldCell struct {
	cell    *Cell
	unready []Unready
	traffic Traffic
}

// reportRequest is the next message: what differs from what was told, which it then counts as told. That calls go on is
// told with a heartbeat only.
func (c *Client) reportRequest(t told, beat bool) *controlv1.ReportRequest {
	v := c.view.Load()
	readiness := c.cfg.Facts.Readiness()
	r := &controlv1.ReportRequest{
		Member: &configv1.Member{
			Id: c.cfg.Node.ID, Address: c.cfg.Node.Address, Labels: c.cfg.Node.Labels, Draining: readiness.Draining,
			Validator: c.cfg.Node.Validator,
		},
		Build: c.cfg.Node.Build, Epoch: v.epoch,
		Ready: readiness.Ready, Reasons: readiness.Reasons, CallsPerSecond: readiness.CallsPerSecond,
		Propagation: c.recent.take(),
		Load: &controlv1.Load{
			CallsInFlight: readiness.Load.CallsInFlight, Connections: readiness.Load.Connections,
			MemoryBytes: readiness.Load.MemoryBytes, Cpu: durationpb.New(readiness.Load.CPU),
		},
	}
	if stale := c.Staleness(); stale > 0 {
		r.Stale = durationpb.New(stale)
	}
	for _, cell := range v.cells {
		now := toldCell{cell: cell, unready: c.cfg.Facts.Unready(cell.Partition), traffic: c.cfg.Facts.Traffic(cell.Partition)}
		if former := t[cell.Partition]; former.cell != cell || !slices.Equal(former.unready, now.unready) || beat && former.traffic != now.traffic {
			t[cell.Partition] = now
			r.Cells = append(r.Cells, now.report())
		}
	}
	if len(t) > len(v.cells) { // v.cells are told, all of them
		for p := range t {
			_, there := slices.BinarySearchFunc(v.cells, p, func(c *Cell, p ident.Partition) int { return cmp.Compare(c.Partition, p) })
			if !there {
				delete(t, p)
				r.Dropped = append(r.Dropped, uint32(p))
			}
		}
		slices.Sort(r.Dropped)
	}
	return r
}

func (t toldCell) report() *controlv1.CellReport {
	r := &controlv1.CellReport{
		Partition: uint32(t.cell.Partition), Root: t.cell.Root.Bytes(), SharedRoot: t.cell.SharedRoot.Bytes(),
		SnapshotVersion: t.cell.Snapshot, Rejections: t.cell.Rejections, Drifted: t.cell.Drifted,
	}
	if t.traffic.Calls > 0 {
		r.Traffic = &controlv1.Traffic{
			Calls: t.traffic.Calls, Failed: t.traffic.Failed, Took: durationpb.New(t.traffic.Took), Since: timestamppb.New(t.traffic.Since),
		}
	}
	for _, u := range t.unready {
		r.Unready = append(r.Unready, &controlv1.Unready{Namespace: u.Namespace, Reason: u.Reason})
	}
	return r
}
