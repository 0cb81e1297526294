package nats

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/prism-gateway/prism/shared/fault"
)

// markersStay is for how long the message that a removal leaves is kept, for watches that come back.
const markersStay = 10 * time.Minute

// target is the stream as it was found.
type target struct {
	// identity tells a stream from one of the same name that was there before.
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

// config is that of the stream that the driver makes.
func (i *Instance) streamConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: i.stream, Description: "items of Prism", Subjects: []string{i.stream + ".*.*.*"},
		Storage: jetstream.FileStorage, Replicas: i.replicas, Retention: jetstream.LimitsPolicy,
		// A full stream refuses: it never drops an item for another.
		Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, MaxBytes: -1, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1,
		AllowMsgTTL: true, SubjectDeleteMarkerTTL: markersStay, AllowRollup: true,
		AllowDirect: i.replicas == 1,
		RePublish:   &jetstream.RePublish{Source: i.stream + ".>", Destination: i.changes(">")},
	}
}

// changes is the subject where the server tells of a change.
func (i *Instance) changes(rest string) string { return i.stream + "-changes." + rest }

// describe asks for the stream.
func (l *line) describe(ctx context.Context, stream string) (*description, *fault.Fault) {
	d := &description{}
	if f := l.api(ctx, "$JS.API.STREAM.INFO."+stream, nil, d, &d.Problem); f != nil {
		return d, f
	}
	return d, nil
}

// prepared returns the stream. The first call on a connection looks for it, and makes it when it is missing.
func (l *line) prepared(ctx context.Context, i *Instance) (*target, *fault.Fault) {
	if t := l.target.Load(); t != nil {
		return t, nil
	}
	select {
	case l.setup <- struct{}{}:
		defer func() { <-l.setup }()
	case <-ctx.Done():
		return nil, unsent(ctx.Err())
	case <-l.ended:
		return nil, brokenFault(nil).WithOutcome(fault.NotApplied)
	}
	if t := l.target.Load(); t != nil {
		return t, nil
	}
	d, f := l.describe(ctx, i.stream)
	if f != nil && d.Problem != nil && d.Problem.Code == codeNoStream {
		d, f = l.create(ctx, i)
	}
	if f != nil {
		return nil, f.WithOutcome(fault.NotApplied) // the stream by itself is nothing
	}
	if err := i.suits(d.Config); err != nil {
		return nil, fault.Wrap(err, fault.FailedPrecondition, fault.Backend, "the backend's stream is not one that the proxy can use").WithOutcome(fault.NotApplied)
	}
	t := &target{direct: d.Config.AllowDirect && d.Config.Replicas <= 1}
	h := fnv.New64a()
	fmt.Fprint(h, i.stream, " ", d.Created.UnixNano())
	t.identity = h.Sum64()
	l.target.Store(t)
	return t, nil
}

// create makes the stream; when another proxy was faster it is that one's.
func (l *line) create(ctx context.Context, i *Instance) (*description, *fault.Fault) {
	d := &description{}
	f := l.api(ctx, "$JS.API.STREAM.CREATE."+i.stream, i.streamConfig(), d, &d.Problem)
	switch {
	case f == nil:
		return d, nil
	case d.Problem != nil && d.Problem.Code == codeNameTaken:
		return l.describe(ctx, i.stream)
	case d.Problem != nil && f.Code == fault.Internal:
		f = fault.Wrap(d.Problem, fault.FailedPrecondition, fault.Backend, "the backend's stream is missing and cannot be made")
	case l.denial() != nil:
		f = fault.Wrap(f, fault.FailedPrecondition, fault.Backend, "the backend's stream is missing and the proxy may not make it")
	}
	return nil, f
}

// suits says what of a stream keeps it from holding items, or nil.
func (i *Instance) suits(c jetstream.StreamConfig) error {
	want := i.streamConfig()
	switch {
	case len(c.Subjects) != 1 || c.Subjects[0] != want.Subjects[0]:
		return fmt.Errorf("stream %s: subjects are %q, want %q", c.Name, c.Subjects, want.Subjects)
	case c.MaxMsgsPerSubject != 1 || c.Discard != want.Discard || c.MaxAge != 0 || c.Retention != want.Retention:
		return fmt.Errorf("stream %s: want one message per subject, limits that refuse, no age", c.Name)
	case !c.AllowMsgTTL || c.SubjectDeleteMarkerTTL < markersStay:
		return fmt.Errorf("stream %s: want allow_msg_ttl and markers for %s, which servers have since 2.11", c.Name, markersStay)
	case c.RePublish == nil || *c.RePublish != *want.RePublish:
		return fmt.Errorf("stream %s: want republishing to %s", c.Name, want.RePublish.Destination)
	}
	return nil
}
