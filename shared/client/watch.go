package client

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"iter"

	"google.golang.org/protobuf/proto"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// Watch yields the changes of an id in order. When a watch is ended because the namespace moves, a proxy stops, the
// caller was too slow, or its token is over and the client's source has another, it goes on after the last change, with the
// next endpoint and with pauses that grow; where changes may have been missed it yields an event of kind RESYNC, as the
// server does: read again what matters. It ends when ctx does, without an error, or with the first error that trying again
// does not mend; one that was never in place is tried as often as other calls are. Nothing is read ahead of the caller but
// what gRPC's window holds.
func (c *Client) Watch(ctx context.Context, in *datav1.WatchRequest) iter.Seq2[*datav1.WatchEvent, error] {
	return func(yield func(*datav1.WatchEvent, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		w := &watch{client: c, in: proto.CloneOf(in), yield: yield}
		for failures := 0; ; failures++ {
			progress, err := w.follow(ctx)
			if w.over || ctx.Err() != nil {
				return
			}
			f := faultgrpc.FromStatus(err)
			hopeless := !w.inPlace && failures+1 >= c.router.cfg.Attempts
			renewed := progress && f.Reason == fault.TokenExpired && c.router.cfg.Token != nil // the next stream shows another
			if hopeless || f.Code != fault.Unavailable && f.Reason != fault.SlowConsumer && !renewed {
				yield(nil, err)
				return
			}
			if at, err := base64.StdEncoding.DecodeString(f.Metadata["start_version"]); err == nil && len(w.in.GetStartVersion()) == 0 {
				w.in.StartVersion = at
			}
			if progress {
				failures = 0
			}
			if !c.router.pause(ctx, failures, 1, min(f.RetryAfter, c.router.cfg.MaxBackoff)) {
				return
			}
		}
	}
}

// watch is a watch that goes on over several streams.
type watch struct {
	client  *Client
	in      *datav1.WatchRequest // StartVersion is where to go on
	yield   func(*datav1.WatchEvent, error) bool
	inPlace bool // it was once: from then on nothing may be missed
	over    bool // the caller wants no more
}

// follow yields what one stream brings until it ends; progress tells whether it came about.
func (w *watch) follow(ctx context.Context) (progress bool, _ error) {
	missed := w.inPlace && len(w.in.GetStartVersion()) == 0
	stream, err := w.client.KeyValue.Watch(ctx, w.in)
	for err == nil {
		var out *datav1.WatchResponse
		if out, err = stream.Recv(); err != nil {
			break
		}
		progress, w.inPlace = true, true
		events := out.GetEvents()
		if missed {
			missed, events = false, append([]*datav1.WatchEvent{{Kind: datav1.WatchKind_WATCH_KIND_RESYNC}}, events...)
		}
		for _, e := range events {
			if v := e.GetItem().GetVersion(); len(v) > 0 {
				w.in.StartVersion = v
			}
			if !w.yield(e, nil) {
				w.over = true
				return progress, nil
			}
		}
	}
	if errors.Is(err, io.EOF) {
		err = faultgrpc.Status(fault.New(fault.Unavailable, fault.Draining, "the server ended the watch"), "").Err()
	}
	return progress, err
}
