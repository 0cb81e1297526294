package harness

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is what a relay does to the connections through it, those that are open and new ones.
type Fault struct {
	// Hold lets nothing through towards the target, HoldBack nothing from it; both together are a network that swallows
	// everything, one of them is half of a broken one. What was held comes through later, as after retransmission.
	Hold, HoldBack bool
	// Cut ends every connection with a reset, and new ones as soon as they come.
	Cut bool
	// Delay is added to every piece that passes, each way.
	Delay time.Duration
	// Trickle lets one byte a second through, each way.
	Trickle bool
}

// Faults that need no further figures.
var (
	Healed    = Fault{}
	Blackhole = Fault{Hold: true, HoldBack: true}
	Deaf      = Fault{HoldBack: true} // requests arrive, answers do not
	Cut       = Fault{Cut: true}
	Trickle   = Fault{Trickle: true}
)

// Relay stands on a link between two programs. It begins healed and ends with the test.
type Relay struct {
	// Address is where the link's near end connects to.
	Address string
	target  string

	ctx     context.Context
	carried atomic.Int64
	mu      sync.Mutex // guards what follows
	fault   Fault
	changed chan struct{} // closed when fault changes
	open    map[net.Conn]struct{}
}

// NewRelay makes a link to target, host:port, which need not be there yet.
func NewRelay(t T, target string) *Relay {
	t.Helper()
	return NewRelayAt(t, "127.0.0.1", target)
}

// NewRelayAt is NewRelay with the near end at an address of the machine.
func NewRelayAt(t T, host, target string) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatalf("relay to %s: %v", target, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Relay{Address: l.Addr().String(), target: target, ctx: ctx, changed: make(chan struct{}), open: map[net.Conn]struct{}{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed at the test's end
			}
			all.Go(func() { r.serve(conn) })
		}
	})
	t.Cleanup(func() {
		stop()
		_ = l.Close()
		r.reset()
		all.Wait()
	})
	return r
}

// Set changes what the link does.
func (r *Relay) Set(f Fault) {
	r.mu.Lock()
	r.fault = f
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	if f.Cut {
		r.reset()
	}
}

// Carried is how many bytes have come through from the target so far.
func (r *Relay) Carried() int64 { return r.carried.Load() }

func (r *Relay) now() (Fault, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault, r.changed
}

// reset ends all connections, so that both ends are told at once.
func (r *Relay) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.open {
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

// keep remembers a connection to be reset. Without it the connection is closed at once, because the relay ends or cuts.
func (r *Relay) keep(conn net.Conn) (ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault.Cut || r.ctx.Err() != nil {
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
		return false
	}
	r.open[conn] = struct{}{}
	return true
}

func (r *Relay) drop(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, conn)
	_ = conn.Close()
}

func (r *Relay) serve(near net.Conn) {
	if !r.keep(near) {
		return
	}
	defer r.drop(near)
	if r.pass(true) != nil { // a connection is made when the first packet arrives there
		return
	}
	far, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(r.ctx, "tcp", r.target)
	if err != nil {
		_ = near.(*net.TCPConn).SetLinger(0)
		return
	}
	if !r.keep(far) {
		return
	}
	defer r.drop(far)
	var both sync.WaitGroup
	both.Go(func() { r.pump(far, near, true) })
	both.Go(func() { r.pump(near, far, false) })
	both.Wait()
}

// pump copies one way, the way to the target or the way back, until that way ends.
func (r *Relay) pump(to, from net.Conn, forth bool) {
	data := make([]byte, 32<<10)
	for {
		if r.pass(forth) != nil { // what is not read stays with the sender, whose buffers fill
			return
		}
		n, err := from.Read(data)
		for sent := 0; sent < n; {
			if r.pass(forth) != nil {
				return
			}
			piece := data[sent:n]
			if f, _ := r.now(); f.Trickle {
				piece = piece[:1]
			}
			written, err := to.Write(piece)
			if err != nil {
				_ = from.Close()
				return
			}
			sent += written
			if !forth {
				r.carried.Add(int64(written))
			}
		}
		if errors.Is(err, io.EOF) {
			if r.pass(forth) == nil {
				_ = to.(*net.TCPConn).CloseWrite()
			}
			return
		}
		if err != nil {
			if r.pass(forth) == nil {
				_ = to.(*net.TCPConn).SetLinger(0)
				_ = to.Close()
			}
			return
		}
	}
}

// pass waits until a piece may pass, and fails when the relay ends.
func (r *Relay) pass(forth bool) error {
	began := time.Now()
	for {
		f, changed := r.now()
		var wait <-chan time.Time
		switch {
		case forth && f.Hold, !forth && f.HoldBack:
		case f.Trickle:
			wait = time.After(time.Until(began.Add(time.Second)))
		case f.Delay > 0:
			wait = time.After(time.Until(began.Add(f.Delay)))
		default:
			return r.ctx.Err()
		}
		select {
		case <-wait:
			return r.ctx.Err()
		case <-changed:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}
