package client

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/shared/settings"
)

// router is a grpc.ClientConnInterface over many endpoints.
type router struct {
	cfg    Config
	owners *ownerCache // nil: any proxy takes any call
	tokens *tokens     // nil: writes get none by themselves
	budget *budget
	turn   atomic.Uint32 // spreads calls over the endpoints

	// mu guards conns, nil after close, and the logins that are kept.
	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	logins map[*Login]bool
}

// errClosed is what calls on a closed client get.
var errClosed = status.Error(codes.Canceled, "the client is closed")

// Invoke does one unary call, on as many endpoints as it takes and as is safe.
func (r *router) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if r.tokens != nil {
		if with, own := r.tokens.give(ctx, r, args); own {
			if err := r.invoke(ctx, method, with, reply, opts); !r.tokens.refused(namespaceOf(args), err) {
				return err
			}
		}
	}
	return r.invoke(ctx, method, args, reply, opts)
}

func (r *router) invoke(ctx context.Context, method string, args, reply any, opts []grpc.CallOption) error {
	namespace := namespaceOf(args)
	endpoints := r.route(ctx, namespace)
	var err error
	for attempt := range r.cfg.Attempts {
		address, former := endpoints[attempt%len(endpoints)], err
		var sent bool
		if sent, err = r.try(ctx, address, method, args, reply, opts); err == nil {
			r.budget.earn()
			return nil
		}
		if former != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && (!sent || isRead(method)) {
			return former // what was answered says more than that the time is over
		}
		if moved(err) {
			r.owners.forget(namespace)
		}
		wait, again := repeat(method, args, err, sent)
		if !again || attempt == r.cfg.Attempts-1 || !r.budget.spend() {
			return err
		}
		if !r.pause(ctx, attempt, len(endpoints), wait) {
			return err
		}
	}
	return err
}

// try does one attempt and reports whether the request may have left this process.
func (r *router) try(ctx context.Context, address, method string, args, reply any, opts []grpc.CallOption) (sent bool, err error) {
	conn, err := r.conn(address)
	if err != nil {
		return false, err
	}
	// gRPC fills in the peer once the request has a stream on a connection; without one nothing was sent.
	var at peer.Peer
	err = conn.Invoke(ctx, method, args, reply, append(slices.Clone(opts), grpc.Peer(&at))...)
	return at.Addr != nil, err
}

// NewStream opens a stream at the first endpoint that takes it. What happens on the stream is the caller's.
func (r *router) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	var err error
	// The first message, which names the namespace, is not known yet: any endpoint serves it.
	for _, address := range r.route(ctx, "") {
		var conn *grpc.ClientConn
		if conn, err = r.conn(address); err != nil {
			return nil, err
		}
		var stream grpc.ClientStream
		if stream, err = conn.NewStream(ctx, desc, method, opts...); err == nil || ctx.Err() != nil {
			return stream, err
		}
	}
	return nil, err
}

// route lists where to try, in order: the owners by rank, then the endpoints from the one whose turn it is.
func (r *router) route(ctx context.Context, namespace string) []string {
	turn := int(r.turn.Add(1)-1) % len(r.cfg.Endpoints)
	if r.owners == nil || namespace == "" {
		return slices.Concat(r.cfg.Endpoints[turn:], r.cfg.Endpoints[:turn])
	}
	route := slices.Clone(r.owners.of(ctx, namespace))
	for i := range r.cfg.Endpoints {
		if e := r.cfg.Endpoints[(turn+i)%len(r.cfg.Endpoints)]; !slices.Contains(route, e) {
			route = append(route, e)
		}
	}
	return route
}

// pause waits before the next attempt and reports whether there is time for one. The first visit to another endpoint is
// at once, unless the answer asked to wait.
func (r *router) pause(ctx context.Context, attempt, endpoints int, asked time.Duration) bool {
	wait := asked
	if wait == 0 && attempt+1 >= endpoints {
		wait = min(25*time.Millisecond<<attempt, r.cfg.MaxBackoff)
	}
	if wait == 0 {
		return ctx.Err() == nil
	}
	if wait > r.cfg.MaxBackoff {
		return false // longer than the caller meant to wait
	}
	if asked > 0 {
		wait += rand.N(asked/2 + 1) // not before it was asked for, and not all at once
	} else {
		wait = wait/2 + rand.N(wait) // half to one and a half
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *router) conn(address string) (*grpc.ClientConn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return nil, errClosed
	}
	if conn, ok := r.conns[address]; ok {
		return conn, nil
	}
	opts := append([]grpc.DialOption{grpc.WithTransportCredentials(r.cfg.Credentials)}, r.cfg.Options...)
	if r.cfg.Token != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer{r, settings.CheckLoopback(address, false) == nil}))
	}
	conn, err := grpc.NewClient("dns:///"+address, opts...)
	if err != nil {
		return nil, err
	}
	r.conns[address] = conn
	return conn, nil
}

// keep has a login refreshed until it is closed; false when the client is.
func (r *router) keep(l *Login) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return false
	}
	r.logins[l] = true
	go func() {
		l.run()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.logins, l)
	}()
	return true
}

func (r *router) close() error {
	r.mu.Lock()
	var errs []error
	for conn := range maps.Values(r.conns) {
		errs = append(errs, conn.Close())
	}
	r.conns = nil
	logins := slices.Collect(maps.Keys(r.logins))
	r.mu.Unlock()
	for _, l := range logins {
		l.cancel()
		<-l.done
	}
	return errors.Join(errs...)
}

// namespaceOf returns the namespace that a request names, or nothing.
func namespaceOf(args any) string {
	if named, ok := args.(interface{ GetNamespace() string }); ok {
		return named.GetNamespace()
	}
	return ""
}
