package nats

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/prism-gateway/prism/shared/fault"
)

// traceStays is for how long the message that a removal leaves is kept, and an item after its expiry, for watches that come
// back. Also, clocks that differ by less hide no item too early.
const traceStays = 10 * time.Minute

// target is the stream as it was found.
type target struct {
	identity uint64
	// direct says that reads may go by the fast way. With more than one replica that way may lead to one that lags, and
	// so reads go to the leader.
	direct bool
}

// description is the answer to a question for a stream.
type description struct {
	Problem *problem               `json:"error"`
	Config  jetstream.StreamConfig `json:"config"`
	Created time.Time              `json:"created"`
}

// identity tells a stream from one of the same name that was there before.
func (d *description) identity() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, d.Config.Name, " ", d.Created.UnixNano())
	return h.Sum64()
}

// itemsConfig is that of the stream of the items.
func (i *Instance) itemsConfig() jetstream.StreamConfig {
	c := i.streamConfig(i.stream, "items of Prism", i.stream+".*.*.*")
	// Without markers of its own in the place of what expired: the server may put one over a message that has just come.
	c.AllowMsgTTL = true
	c.RePublish = &jetstream.RePublish{Source: i.stream + ".>", Destination: i.changes(">")}
	return c
}

func (i *Instance) streamConfig(name, description, subjects string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Description: description, Subjects: []string{subjects},
		Storage: jetstream.FileStorage, Replicas: i.replicas, Retention: jetstream.LimitsPolicy,
		// A full stream refuses: it never drops an item for another.
		Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, MaxBytes: -1, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1,
		AllowDirect: i.replicas == 1,
	}
}

// changes is the subject where the server tells of a change.
func (i *Instance) changes(rest string) string { return i.stream + "-changes." + rest }

// describe asks for a stream.
func (l *line) describe(ctx context.Context, stream string) (*description, *fault.Fault) {
	d := &description{}
	f := l.api(ctx, "$JS.API.STREAM.INFO."+stream, nil, d, &d.Problem)
	return d, f
}

// prepared returns a stream. The first call on a connection looks for it, and makes it when it is missing.
func (l *line) prepared(ctx context.Context, known *atomic.Pointer[target], want jetstream.StreamConfig) (*target, *fault.Fault) {
	select {
	case l.setup <- struct{}{}:
		defer func() { <-l.setup }()
	case <-ctx.Done():
		return nil, unsent(ctx.Err())
	case <-l.ended:
		return nil, brokenFault(nil).WithOutcome(fault.NotApplied)
	}
	if t := known.Load(); t != nil {
		return t, nil
	}
	d, f := l.describe(ctx, want.Name)
	if f != nil && d.Problem != nil && d.Problem.Code == codeNoStream {
		d, f = l.create(ctx, want)
	}
	if f != nil {
		return nil, f.WithOutcome(fault.NotApplied) // the stream by itself is nothing
	}
	if err := suits(d.Config, want); err != nil {
		return nil, fault.Wrap(err, fault.FailedPrecondition, fault.Backend, "the backend's stream is not one that the proxy can use").WithOutcome(fault.NotApplied)
	}
	t := &target{identity: d.identity(), direct: d.Config.AllowDirect && d.Config.Replicas <= 1}
	known.Store(t)
	return t, nil
}

// create makes a stream; when another proxy was faster it is that one's.
func (l *line) create(ctx context.Context, want jetstream.StreamConfig) (*description, *fault.Fault) {
	d := &description{}
	f := l.api(ctx, "$JS.API.STREAM.CREATE."+want.Name, want, d, &d.Problem)
	switch {
	case f == nil:
	case d.Problem != nil && d.Problem.Code == codeNameTaken:
		return l.describe(ctx, want.Name)
	case d.Problem != nil && f.Code == fault.Internal:
		f = fault.Wrap(d.Problem, fault.FailedPrecondition, fault.Backend, "the backend's stream is missing and cannot be made")
	case d.Problem == nil && l.denial("$JS.API.STREAM.CREATE."+want.Name) != nil:
		f = fault.Wrap(f, fault.FailedPrecondition, fault.Backend, "the backend's stream is missing and the proxy may not make it")
	}
	return d, f
}

// suits says what keeps a stream from being used as the one that is wanted, or nil.
func suits(c, want jetstream.StreamConfig) error {
	switch {
	case !slices.Equal(c.Subjects, want.Subjects):
		return fmt.Errorf("stream %s: its subjects are %q, want %q", c.Name, c.Subjects, want.Subjects)
	case c.MaxMsgsPerSubject != 1 || c.Discard != want.Discard || c.MaxAge != 0 || c.Retention != want.Retention:
		return fmt.Errorf("stream %s: want one message per subject, limits that refuse, no age", c.Name)
	case c.AllowMsgTTL != want.AllowMsgTTL || c.SubjectDeleteMarkerTTL != 0:
		return fmt.Errorf("stream %s: want allow_msg_ttl, which servers have since 2.11, and no markers", c.Name)
	case want.RePublish != nil && (c.RePublish == nil || *c.RePublish != *want.RePublish):
		return fmt.Errorf("stream %s: want republishing to %s", c.Name, want.RePublish.Destination)
	}
	return nil
}
