package nats

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// listing is a page of the answer to the question which subjects a stream has.
type listing struct {
	Problem *problem `json:"error"`
	Total   int      `json:"total"`
	State   struct {
		Subjects map[string]uint64 `json:"subjects"`
	} `json:"state"`
}

// keys are the keys of an id that have messages, in byte order, also those of removed items.
func (i *Instance) keys(ctx context.Context, space driver.Space, id []byte) ([][]byte, *fault.Fault) {
	l, _, f := i.ready(ctx)
	if f != nil {
		return nil, f
	}
	filter := i.stream + "." + idSubject(space, id) + ".*"
	var keys [][]byte
	for met := 0; ; {
		var page listing
		request := map[string]any{"subjects_filter": filter, "offset": met}
		if f := l.api(ctx, "$JS.API.STREAM.INFO."+i.stream, request, &page, &page.Problem); f != nil {
			return nil, f
		}
		for subject := range page.State.Subjects {
			if name, ok := nameOf(subject); ok {
				keys = append(keys, name.Key)
			}
		}
		met += len(page.State.Subjects)
		if met >= page.Total || len(page.State.Subjects) == 0 {
			break
		}
	}
	// Pages may overlap when keys come between their questions.
	slices.SortFunc(keys, bytes.Compare)
	return slices.CompactFunc(keys, bytes.Equal), nil
}

const (
	// firstRead is how many items a scan asks for before it knows how long they are.
	firstRead = 8
	// keysOnlyRead is how many bytes of values a scan that leaves them out reads at a time.
	keysOnlyRead = 4 << 20
)

// Scan asks which keys an id has, and then for the items of the range, some at a time.
func (i *Instance) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	keys, f := i.keys(ctx, space, r.ID)
	if f != nil {
		return nil, false, f.WithOutcome("")
	}
	first, _ := slices.BinarySearchFunc(keys, r.Start, bytes.Compare)
	end := len(keys)
	if r.End != nil {
		end, _ = slices.BinarySearchFunc(keys, r.End, bytes.Compare)
	}
	keys = keys[first:max(first, end)]
	if r.Reverse {
		slices.Reverse(keys)
	}
	var items []driver.Item
	size, met, read := 0, 0, 0 // bytes of the page; keys that were asked for, and the bytes of their values
	for met < len(keys) {
		next := firstRead
		if met > 0 {
			want := r.MaxBytes - size
			if r.KeysOnly { // values are read and left out
				want = keysOnlyRead
			}
			next = want*met/max(read, 1) + 1
		}
		chunk := keys[met:min(len(keys), met+max(1, min(next, atOnce, r.Limit-len(items)+1)))]
		entries := make([]entry, len(chunk))
		faults := make([]*fault.Fault, len(chunk))
		each(len(chunk), func(n int) {
			entries[n], faults[n] = i.last(ctx, i.subject(space, driver.Name{ID: r.ID, Key: chunk[n]}))
		})
		met += len(chunk)
		now := i.now()
		for n, e := range entries {
			if faults[n] != nil {
				return nil, false, faults[n].WithOutcome("")
			}
			read += len(e.value)
			if !e.there(now) {
				continue
			}
			if len(items) == r.Limit || (len(items) > 0 && size >= r.MaxBytes) {
				return items, true, nil
			}
			it := e.item(cloned(driver.Name{ID: r.ID, Key: chunk[n]}), r.KeysOnly)
			items = append(items, *it)
			size += len(it.ID) + len(it.Key) + len(it.Value)
		}
	}
	return items, false, nil
}

// maxWalk bounds the messages that a page of ListIDs looks at.
const maxWalk = 4096

// ListIDs goes through the messages of a space in the order of their sequences, which is the cursor. What is written
// meanwhile moves to the end, so that nothing is left out.
func (i *Instance) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) ([][]byte, []byte, error) {
	from := uint64(1)
	if len(cursor) == 8 {
		from = binary.BigEndian.Uint64(cursor)
	} else if len(cursor) != 0 {
		return nil, nil, fault.New(fault.Invalid, fault.PageToken, "the page token is none of this backend's")
	}
	var ids [][]byte
	met := map[string]bool{}
	now := i.now()
	next, done, f := i.walk(ctx, i.stream, i.stream+"."+token([]byte(space))+".*.*", from, min(limit, maxWalk), true, func(m message) (bool, error) {
		e, err := read(m.sequence, m.header, nil)
		if err != nil {
			return false, damaged(err)
		}
		if name, ok := nameOf(m.subject); ok && e.there(now) && !met[string(name.ID)] {
			met[string(name.ID)] = true
			ids = append(ids, name.ID)
		}
		return len(ids) < limit, nil
	})
	if f != nil {
		return nil, nil, f.WithOutcome("")
	}
	if done {
		return ids, nil, nil
	}
	return ids, binary.BigEndian.AppendUint64(nil, next), nil
}

// message is one of a stream.
type message struct {
	subject  string
	sequence uint64
	header   nats.Header
	data     []byte
}

// walk goes through the messages of a stream's filter from a sequence on, until there are no more, visit wants no more, or many
// were seen. It returns the sequence to go on from, and whether it came to the end, as the stream's leader sees it.
// expect is how many the caller may want.
func (i *Instance) walk(ctx context.Context, stream, filter string, from uint64, expect int, headersOnly bool, visit func(message) (bool, error)) (next uint64, done bool, _ *fault.Fault) {
	l, _, f := i.ready(ctx)
	if f != nil {
		return from, false, f
	}
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	for seen := 0; seen < maxWalk; {
		// The consumer may be on a server that lags, so the end is only where the leader has nothing more.
		sequence, _, _, f := l.ask(ctx, stream, map[string]any{"seq": from, "next_by_subj": filter})
		if f != nil {
			return from, false, f
		}
		if sequence == 0 {
			return from, true, nil
		}
		n, more, err := l.consume(ctx, stream, filter, sequence, expect, headersOnly, func(m message) (bool, error) {
			from = m.sequence + 1
			return visit(m)
		})
		if err != nil {
			return from, false, walkFault(ctx, err)
		}
		if !more {
			return from, false, nil
		}
		if seen += n; n == 0 {
			if f := i.back(ctx, 1); f != nil {
				return from, false, f
			}
		}
	}
	return from, false, nil
}

// consume visits the messages of a filter that a consumer has at present.
func (l *line) consume(ctx context.Context, stream, filter string, from uint64, expect int, headersOnly bool, visit func(message) (bool, error)) (n int, more bool, _ error) {
	js, err := jetstream.New(l.nc)
	if err != nil {
		return 0, false, err
	}
	c, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		FilterSubject: filter, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, HeadersOnly: headersOnly,
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return 0, false, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		js.DeleteConsumer(ctx, stream, c.CachedInfo().Name) // else the server does, soon
	}()
	for left := c.CachedInfo().NumPending; left > 0 && n < maxWalk; {
		batch, err := c.FetchNoWait(max(1, min(expect, 256)))
		if err != nil {
			return n, false, err
		}
		left = 0
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return n, false, err
			}
			n, left = n+1, meta.NumPending
			if more, err := visit(message{m.Subject(), meta.Sequence.Stream, m.Headers(), m.Data()}); !more || err != nil {
				return n, false, err
			}
		}
		switch err := batch.Error(); {
		case errors.Is(err, nats.ErrNoResponders): // it is being set up on another server
			if f := l.rest(ctx, 5*time.Millisecond); f != nil {
				return n, false, f
			}
			left = 1
		case err != nil && !errors.Is(err, nats.ErrTimeout):
			return n, false, err
		}
	}
	return n, true, nil
}

// walkFault is the fault of what a consumer met.
func walkFault(ctx context.Context, err error) *fault.Fault {
	if f, ok := errors.AsType[*fault.Fault](err); ok {
		return f
	}
	if ctx.Err() != nil {
		return late(ctx.Err())
	}
	return brokenFault(err)
}
