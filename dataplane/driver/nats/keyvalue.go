package nats

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const (
	// maxTries bounds how often a write that others were faster than begins again.
	maxTries = 100
	// atOnce is how many entries of a batch are under way at a time.
	atOnce = 128
	// longestLife is the longest after which the server is asked to remove an item. What lives longer stays.
	longestLife = 50 * 365 * 24 * time.Hour
)

// last reads the last message of a subject.
func (i *Instance) last(ctx context.Context, subject string) (entry, *fault.Fault) {
	l, t, f := i.ready(ctx)
	if f != nil {
		return entry{}, f
	}
	return l.last(ctx, i.stream, t.direct, subject)
}

// last reads the last message of a subject of a stream.
func (l *line) last(ctx context.Context, stream string, direct bool, subject string) (entry, *fault.Fault) {
	sequence, header, data, f := l.lastMessage(ctx, stream, direct, subject)
	if f != nil || sequence == 0 {
		return entry{}, f
	}
	e, err := read(sequence, header, data)
	if err != nil {
		return e, damaged(err)
	}
	return e, nil
}

// stored is the answer to a question to the stream's leader for a message.
type stored struct {
	Problem *problem `json:"error"`
	Message struct {
		Subject  string `json:"subject"`
		Sequence uint64 `json:"seq"`
		Header   []byte `json:"hdrs"`
		Data     []byte `json:"data"`
	} `json:"message"`
}

const codeNoMessage = 10037

// lastMessage reads the last message of a subject as it is; its sequence is 0 when there is none.
func (l *line) lastMessage(ctx context.Context, stream string, direct bool, subject string) (uint64, nats.Header, []byte, *fault.Fault) {
	if !direct {
		return l.ask(ctx, stream, map[string]any{"last_by_subj": subject})
	}
	m, f := l.do(ctx, nats.NewMsg("$JS.API.DIRECT.GET."+stream+"."+subject))
	if f != nil {
		return 0, nil, nil, f
	}
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return 0, nil, nil, nil
	default:
		code, _ := strconv.Atoi(status)
		return 0, nil, nil, (&problem{Status: code, Description: m.Header.Get("Description")}).fault(l)
	}
	sequence, err := strconv.ParseUint(m.Header.Get(sequenceHeader), 10, 64)
	if err != nil {
		return 0, nil, nil, damaged(err)
	}
	return sequence, m.Header, m.Data, nil
}

// ask asks a stream's leader for one message; its sequence is 0 when there is none.
func (l *line) ask(ctx context.Context, stream string, request any) (uint64, nats.Header, []byte, *fault.Fault) {
	var s stored
	f := l.api(ctx, "$JS.API.STREAM.MSG.GET."+stream, request, &s, &s.Problem)
	switch {
	case s.Problem != nil && s.Problem.Code == codeNoMessage:
		return 0, nil, nil, nil
	case f != nil:
		return 0, nil, nil, f
	}
	var header nats.Header
	if len(s.Message.Header) > 0 {
		var err error
		if header, err = nats.DecodeHeadersMsg(s.Message.Header); err != nil {
			return 0, nil, nil, damaged(err)
		}
	}
	return s.Message.Sequence, header, s.Message.Data, nil
}

// acknowledgement is the answer to a message for a stream.
type acknowledgement struct {
	Problem  *problem `json:"error"`
	Sequence uint64   `json:"seq"`
}

// store stores a message if the last one of its subject is still that of a sequence, and says whether it was.
func (l *line) store(ctx context.Context, m *nats.Msg, expected uint64) (uint64, bool, *fault.Fault) {
	m.Header.Set(expectedHeader, strconv.FormatUint(expected, 10))
	answer, f := l.do(ctx, m)
	if f != nil {
		return 0, false, f
	}
	var a acknowledgement
	switch err := json.Unmarshal(answer.Data, &a); {
	case err != nil:
		return 0, false, fault.Wrap(err, fault.Internal, fault.Bug, "internal error").WithOutcome(fault.OutcomeUnknown)
	case a.Problem == nil:
		return a.Sequence, true, nil
	case a.Problem.Code == codeWrongSequence || a.Problem.Code == codeWrongConstant:
		return 0, false, nil
	}
	return 0, false, a.Problem.fault(l)
}

// put stores a record for a subject whose last message is still that of a sequence.
func (i *Instance) put(ctx context.Context, l *line, subject string, r *record, value []byte, expected uint64) (uint64, bool, *fault.Fault) {
	m := &nats.Msg{Subject: subject, Header: nats.Header{recordHeader: {r.encode()}}, Data: slices.Clone(value)}
	switch {
	case r.kind == deleted || r.kind == lapsed:
		m.Header.Set(lifeHeader, life(traceStays))
	case r.expire != 0:
		if left := driver.ExpireTime(r.expire).Sub(i.now()); left < longestLife {
			m.Header.Set(lifeHeader, life(max(left, 0)+traceStays))
		}
	}
	if int64(m.Size()-len(m.Subject)-len(m.Reply)) > l.nc.MaxPayload() {
		return 0, false, tooLarge(nats.ErrMaxPayload)
	}
	return l.store(ctx, m, expected)
}

// life is a time in whole seconds, rounded up.
func life(d time.Duration) string { return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10) }

// Get is one question for the last message of a subject.
func (i *Instance) Get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	e, f := i.last(ctx, i.subject(space, name))
	if f != nil {
		return nil, f.WithOutcome("")
	}
	if !e.there(i.now()) {
		return nil, nil
	}
	if e.record.kind == parted && !headOnly {
		return nil, driver.TooLarge(e.record.large.size)
	}
	return e.item(cloned(name), headOnly), nil
}

func cloned(n driver.Name) driver.Name {
	return driver.Name{ID: append([]byte{}, n.ID...), Key: append([]byte{}, n.Key...)}
}

// BatchGet asks for all items at once.
func (i *Instance) BatchGet(ctx context.Context, space driver.Space, names []driver.Name, headOnly bool) []driver.GetResult {
	results := make([]driver.GetResult, len(names))
	each(len(names), func(n int) { results[n].Item, results[n].Err = i.Get(ctx, space, names[n], headOnly) })
	return results
}

// each calls a function for the numbers below n, many at a time.
func each(n int, f func(n int)) {
	var wait sync.WaitGroup
	for first := range min(n, atOnce) {
		wait.Go(func() {
			for at := first; at < n; at += atOnce {
				f(at)
			}
		})
	}
	wait.Wait()
}

// Write does one write.
func (i *Instance) Write(ctx context.Context, space driver.Space, w driver.Write) (driver.Written, error) {
	done, f := i.change(ctx, space, w.Name, func(old entry, now time.Time) (*change, error) { return i.write(w, nil, old, now) })
	if f != nil {
		return driver.Written{}, f
	}
	return done, nil
}

// BatchWrite does all writes at once, each by itself.
func (i *Instance) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	results := make([]driver.WriteResult, len(writes))
	each(len(writes), func(n int) { results[n].Written, results[n].Err = i.Write(ctx, space, writes[n]) })
	return results
}

// change is what a write leaves.
type change struct {
	record *record // nil: all stays as it is
	value  []byte
	done   driver.Written // without the version
}

// change reads an item, works out what a write leaves, and stores that if nobody was faster; else it begins again.
func (i *Instance) change(ctx context.Context, space driver.Space, name driver.Name, work func(old entry, now time.Time) (*change, error)) (driver.Written, error) {
	subject := i.subject(space, name)
	for try := range maxTries {
		if try > 0 {
			if f := i.back(ctx, try); f != nil {
				return driver.Written{}, f
			}
		}
		l, t, f := i.ready(ctx)
		if f != nil {
			return driver.Written{}, f
		}
		old, f := l.last(ctx, i.stream, t.direct, subject)
		if f != nil {
			return driver.Written{}, f.WithOutcome(fault.NotApplied)
		}
		now := i.now()
		c, err := work(old, now)
		if err != nil {
			return driver.Written{}, err
		}
		if c.record == nil {
			return c.done, nil
		}
		c.record.mark = newMark(t.identity, now)
		sequence, stored, f := i.put(ctx, l, subject, c.record, c.value, old.sequence)
		if f != nil {
			return driver.Written{}, f
		}
		if !stored {
			continue
		}
		if r := old.record; r != nil && r.kind == parted && (c.record.kind != parted || c.record.large.name != r.large.name) {
			i.giveUp(ctx, r.large.name)
		}
		if c.record.kind != deleted {
			c.done.Version = c.record.mark.version(sequence)
		}
		return c.done, nil
	}
	return driver.Written{}, fault.New(fault.Conflict, fault.TxConflict, "others changed the item all the time").WithOutcome(fault.NotApplied).WithRetry(pause)
}

// back waits a little, a random time that grows with the tries.
func (i *Instance) back(ctx context.Context, try int) *fault.Fault {
	return i.rest(ctx, rand.N(time.Duration(min(try, 20))*500*time.Microsecond))
}

// rest waits.
func (i *Instance) rest(ctx context.Context, wait time.Duration) *fault.Fault {
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return unsent(ctx.Err())
	case <-i.stop:
		return closedFault()
	}
}

// write works out what a write leaves. large is its value when that is in parts.
func (i *Instance) write(w driver.Write, large *manifest, old entry, now time.Time) (*change, error) {
	there := old.there(now)
	var current []byte
	if there {
		current = old.version()
	}
	if err := w.Refusal(current); err != nil {
		return nil, err
	}
	c := &change{done: driver.Written{Existed: there}}
	if w.Previous && there {
		c.done.Previous = old.item(cloned(w.Name), false)
	}
	r := &record{kind: whole, expire: driver.ExpireMillis(w.ExpireAt), modified: now.UnixMicro(), contentType: w.ContentType, metadata: w.Metadata}
	switch {
	case w.Op == driver.Delete && !there:
		return c, nil
	case w.Op == driver.Delete:
		c.record = &record{kind: deleted}
		return c, nil
	case w.Op == driver.Touch:
		r.kind, r.large, r.modified, r.contentType, r.metadata = old.record.kind, old.record.large, old.record.modified, old.record.contentType, old.record.metadata
		c.value = old.value
	default:
		c.value = w.Value
		if large != nil {
			r.kind, r.large, c.value = parted, *large, nil
		}
		if there {
			r.modified = max(r.modified, old.record.modified)
		}
	}
	if w.KeepExpiry && there {
		r.expire = old.record.expire
	}
	c.record, c.done.ExpireAt = r, driver.ExpireTime(r.expire)
	return c, nil
}

// Increment adds to a counter.
func (i *Instance) Increment(ctx context.Context, space driver.Space, inc driver.Increment) (driver.Incremented, error) {
	var sum int64
	done, err := i.change(ctx, space, inc.Name, func(old entry, now time.Time) (*change, error) {
		w := driver.Write{Name: inc.Name, ExpireAt: inc.ExpireAt, KeepExpiry: inc.KeepExpiry}
		there := old.there(now)
		if there {
			w.ContentType, w.Metadata = old.record.contentType, old.record.metadata
		}
		var err error
		if sum, err = inc.Sum(old.value, there); err != nil {
			return nil, err
		}
		w.Value = driver.FormatNumber(sum)
		return i.write(w, nil, old, now)
	})
	if err != nil {
		return driver.Incremented{}, err
	}
	return driver.Incremented{Value: sum, Written: done}, nil
}
