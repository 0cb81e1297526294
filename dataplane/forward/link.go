package forward

import (
	"fmt"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/shared/fault"
)

// ordered puts owners that were away a moment ago after the others. It leaves the list alone.
func (f *Forwarder) ordered(owners []routing.Peer) []routing.Peer {
	now := f.now().UnixNano()
	out := make([]routing.Peer, 0, len(owners))
	var away []routing.Peer
	for _, o := range owners {
		if v, ok := f.peers.Load(o.Address); ok && v.(*link).avoidUntil.Load() > now {
			away = append(away, o)
		} else {
			out = append(out, o)
		}
	}
	return append(out, away...)
}

// link returns the connection to a proxy with one more call under way, which ends by done.
func (f *Forwarder) link(address string) (*link, error) {
	for {
		if v, ok := f.peers.Load(address); ok {
			if l := v.(*link); l.begin() {
				return l, nil
			}
		}
		if err := f.open(address); err != nil {
			return nil, err
		}
	}
}

func (f *Forwarder) open(address string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fault.New(fault.Unavailable, fault.Draining, "the proxy is stopping").WithOutcome(fault.NotApplied)
	}
	if _, ok := f.peers.Load(address); ok {
		return nil // a retired link leaves the map under the same lock
	}
	conn, err := grpc.NewClient("passthrough:///"+address, f.options...)
	if err != nil {
		return fault.Wrap(fmt.Errorf("address of a proxy: %w", err), fault.Internal, fault.Bug, "internal error").WithOutcome(fault.NotApplied)
	}
	l := &link{conn: conn}
	l.calls.Store(1)
	f.peers.Store(address, l)
	return nil
}

// begin is false when the link is closed already.
func (l *link) begin() bool {
	for {
		n := l.calls.Load()
		if n == 0 {
			return false
		}
		if l.calls.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// done ends a call; the last one of a retired link closes it.
func (l *link) done() {
	if l.calls.Add(-1) == 0 {
		_ = l.conn.Close() // only says that it is closed already
	}
}

// Keep retires the connections to proxies that are not in the fleet any more. Calls under way go on.
func (f *Forwarder) Keep(fleet *routing.Fleet) {
	if f.fleet.Swap(fleet) == fleet {
		return
	}
	known := map[string]bool{}
	for _, m := range fleet.Members {
		known[m.Address] = true
	}
	f.retire(func(address string) bool { return !known[address] })
}

// Close retires all connections; later calls are refused.
func (f *Forwarder) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.retire(func(string) bool { return true })
}

func (f *Forwarder) retire(which func(address string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peers.Range(func(address, v any) bool {
		if which(address.(string)) {
			f.peers.Delete(address)
			v.(*link).done()
		}
		return true
	})
}

// Connections is how many proxies there are connections to.
func (f *Forwarder) Connections() (n int) {
	f.peers.Range(func(any, any) bool { n++; return true })
	return n
}
