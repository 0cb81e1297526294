package dataapi

import (
	"encoding/base64"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// startVersion is the metadata of errors that end a watch: after it the caller can go on.
const startVersion = "start_version"

// watch sends an empty answer when the watch is in place, and then the changes.
func watch(c streamed) error {
	in := &datav1.WatchRequest{}
	if err := c.first.Decode(in); err != nil {
		return undecodable(err)
	}
	kv, err := store(c.route)
	if err != nil {
		return err
	}
	ctx, cancel, moved := c.whileServed()
	defer cancel()
	last, err := kv.Watch(ctx, keyvalue.Following{ID: in.GetId(), Prefix: in.GetPrefix(), After: in.GetStartVersion()}, func(events []driver.Event) error {
		out := &datav1.WatchResponse{Events: make([]*datav1.WatchEvent, len(events))}
		for i, e := range events {
			out.Events[i] = &datav1.WatchEvent{Kind: datav1.WatchKind(e.Kind), Item: itemOf(&e.Item)}
		}
		return c.SendMsg(out)
	})
	if ended := moved(); ended != nil {
		f := fault.From(ended)
		if len(last) > 0 {
			f = f.With(startVersion, base64.StdEncoding.EncodeToString(last))
		}
		return f
	}
	if err == nil && c.Context().Err() != nil {
		err = fault.From(c.Context().Err())
	}
	return err
}
