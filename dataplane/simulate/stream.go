package simulate

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/dataplane/subscribe"
)

const sentinelType = "type.googleapis.com/prism.config.v1.Sentinel"

// pageFull is from what size on, in bytes, a response may be followed by another of the same change.
const pageFull = 512 << 10

var errDropped = errors.New("the simulation broke the stream off")

// stream is a proxy's stream of configuration: it counts what passes, and fails or stalls as it is told to.
type stream struct {
	grpc.ClientStream
	proxy  *proxy
	ctx    context.Context
	end    func()
	answer sync.Once
	resume map[string]bool // types whose answer to what the proxy came with is still under way; Recv's goroutine only
	asked  atomic.Int64    // bytes of requests until the first answer
}

// watch puts a stream around those that bring configuration.
func (p *proxy) watch(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method != discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName {
		return open(ctx, desc, cc, method, opts...)
	}
	ctx, cancel := context.WithCancel(ctx)
	inner, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &stream{ClientStream: inner, proxy: p, ctx: ctx, end: cancel}
	p.opened.Store(time.Now().UnixNano())
	if p.streams.Add(1) > 1 {
		p.sim.counts.reconnects.Add(1)
		if len(p.partitions()) > 0 {
			s.resume = map[string]bool{subscribe.SharedType: true, subscribe.NamespaceType: true}
		}
	}
	if every := p.sim.cfg.Reconnect; every > 0 {
		timer := time.AfterFunc(every/2+rand.N(every), cancel)
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	return s, nil
}

// RecvMsg reads a response, unless the proxy is stalled or the stream is broken off.
func (s *stream) RecvMsg(m any) error {
	p := s.proxy
	err := s.ClientStream.RecvMsg(m)
	if err == nil && p.stalls && p.settled() {
		s.stall(p.sim.cfg.StallTime)
		err = s.ctx.Err() // what was read is passed on unless the stream has ended
	}
	if drop := p.sim.cfg.Drop; err == nil && drop > 0 && rand.Float64() < drop {
		err = errDropped
	}
	if err != nil {
		s.end()
		if p.connected.Swap(false) {
			p.lost.Store(time.Now().UnixNano())
		}
		return err
	}
	s.answer.Do(func() {
		p.connected.Store(true)
		if s.resume != nil {
			p.sim.counts.asked(s.asked.Load())
		}
	})
	if r, ok := m.(*discoveryv3.DeltaDiscoveryResponse); ok {
		s.count(r)
	}
	return nil
}

// stall waits for the time, or for the end of the stream when it is 0.
func (s *stream) stall(d time.Duration) {
	if d == 0 {
		<-s.ctx.Done()
		return
	}
	wait(s.ctx, d)
}

func (s *stream) count(r *discoveryv3.DeltaDiscoveryResponse) {
	resources, bytes := 0, 0
	for _, res := range r.GetResources() {
		if res.GetResource().GetTypeUrl() != sentinelType {
			resources++
			bytes += len(res.GetResource().GetValue())
		}
	}
	c := s.proxy.sim.counts
	c.responses.Add(1)
	c.resources.Add(uint64(resources))
	if s.resume[r.GetTypeUrl()] {
		c.resumed.Add(uint64(resources))
		c.resumedBytes.Add(uint64(proto.Size(r)))
		s.resume[r.GetTypeUrl()] = bytes > pageFull
		if lost := s.proxy.lost.Load(); lost != 0 && r.GetTypeUrl() == subscribe.NamespaceType && bytes <= pageFull {
			c.back(time.Since(time.Unix(0, lost)))
		}
	}
}

// SendMsg sends a request and counts refusals.
func (s *stream) SendMsg(m any) error {
	if r, ok := m.(*discoveryv3.DeltaDiscoveryRequest); ok {
		if r.GetErrorDetail() != nil {
			s.proxy.sim.counts.nacks.Add(1)
		}
		if s.proxy.streams.Load() > 1 && !s.proxy.connected.Load() {
			s.asked.Add(int64(proto.Size(r)))
		}
	}
	return s.ClientStream.SendMsg(m)
}

// wire counts the bytes of all messages.
type wire struct{ counts *counts }

// TagRPC changes nothing.
func (wire) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC counts a message.
func (w wire) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s := s.(type) {
	case *stats.InPayload:
		w.counts.received.Add(uint64(s.WireLength))
	case *stats.OutPayload:
		w.counts.sent.Add(uint64(s.WireLength))
	}
}

// TagConn changes nothing.
func (wire) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn has nothing to count.
func (wire) HandleConn(context.Context, stats.ConnStats) {}
