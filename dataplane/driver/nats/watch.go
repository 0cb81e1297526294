package nats

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

const (
	// resumeWithin is how old the event may be that a watch goes on after: what was removed since has left its message.
	resumeWithin = traceStays / 2
	// lapseEvery is how often a watch looks for items whose time has run out, verifyEvery whether it has missed a change.
	lapseEvery  = 100 * time.Millisecond
	verifyEvery = 10 * time.Second
	// maxRest bounds how long a watch waits before it looks for the server again.
	maxRest = 2 * time.Second
	// maxUnread bounds the changes that wait for a watch.
	maxUnread = 8192
)

// watch is one Watch. The server sends each change once it is stored, but a message that gets lost on the way, or while
// the stream has no leader, is lost. Each message names the one that it replaces, so that a watch sees what it lacks.
type watch struct {
	i     *Instance
	space driver.Space
	from  driver.From
	send  func([]driver.Event) error

	placed   bool
	identity uint64
	position uint64          // all up to it was seen, or was there before
	seen     time.Time       // when that was last so
	known    map[string]last // by key
	soonest  int64           // no item of known expires before
	checked  uint64          // how far it was verified
	missing  map[string]uint64
	events   []driver.Event
}

// last is what a watch knows of a key: its newest message.
type last struct {
	sequence uint64
	there    bool
	expire   int64
	gone     time.Time // when it was seen to go
	tried    time.Time // when its expiry was last told to the stream
}

// Watch follows the changes of an id, over as many connections as that takes.
func (i *Instance) Watch(ctx context.Context, space driver.Space, from driver.From, send func([]driver.Event) error) error {
	w := &watch{i: i, space: space, from: from, send: send, known: map[string]last{}, missing: map[string]uint64{}}
	for try := 1; ; try++ {
		placed, err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if stops, ok := err.(stopped); ok {
			return stops.error
		}
		if err != nil && !w.placed {
			return err
		}
		if placed {
			try = 1
		}
		if f := i.rest(ctx, rand.N(min(time.Duration(try)*lapseEvery, maxRest))); f != nil && ctx.Err() == nil {
			return f
		}
	}
}

// stopped is the error of a caller who wants no more events.
type stopped struct{ error }

// follow follows the id on one connection, and says whether it came as far as to be in place.
func (w *watch) follow(ctx context.Context) (bool, error) {
	l, t, f := w.i.ready(ctx)
	if f != nil {
		return false, f
	}
	messages := make(chan *nats.Msg, maxUnread)
	subject := w.i.changes(idSubject(w.space, w.from.ID) + ".*")
	subscription, err := l.nc.ChanSubscribe(subject, messages)
	if err != nil {
		return false, brokenFault(err)
	}
	defer subscription.Unsubscribe()
	if f := l.flush(ctx); f != nil {
		return false, f
	}
	if err := l.denial(subject); err != nil {
		return false, deniedFault(err)
	}
	if err := w.begin(ctx, t); err != nil {
		return false, err
	}
	lapse, verify := time.NewTicker(lapseEvery), time.NewTicker(verifyEvery)
	defer lapse.Stop()
	defer verify.Stop()
	for {
		if err := w.tell(); err != nil {
			return true, err
		}
		select {
		case <-ctx.Done():
			return true, nil
		case <-w.i.stop:
			return true, stopped{closedFault()}
		case <-l.ended:
			return true, nil
		case m := <-messages:
			w.heard(m)
			for len(messages) > 0 {
				w.heard(<-messages)
			}
		case <-lapse.C:
			if dropped, _ := subscription.Dropped(); dropped > 0 {
				return true, w.lost()
			}
			w.seen = time.Now()
			w.lapse(ctx)
		case <-verify.C:
			if missed, f := w.verify(ctx, l); f != nil {
				return true, f
			} else if missed {
				return true, w.lost()
			}
		}
	}
}

// lost forgets what is known, so that the next connection begins with a resync.
func (w *watch) lost() error {
	w.identity = 0
	return nil
}

// tell gives the caller what is new.
func (w *watch) tell() error {
	if len(w.events) == 0 {
		return nil
	}
	events := w.events
	w.events = nil
	if err := w.send(events); err != nil {
		return stopped{err}
	}
	return nil
}

// begin learns what the id holds, and what happened since the watch was last in place or since the event to go on after.
func (w *watch) begin(ctx context.Context, t *target) error {
	resync, resume := false, false
	switch {
	case w.placed:
		resume = w.identity == t.identity && time.Since(w.seen) < resumeWithin
		resync = !resume
	case len(w.from.After) > 0:
		w.position, resume = position(w.from.After, t.identity, w.i.now())
		resync = !resume
	}
	w.identity = t.identity
	through := uint64(math.MaxUint64)
	if resume {
		through = w.position
	} else {
		w.position = 0
	}
	if !w.placed || resync {
		if f := w.load(ctx, through); f != nil {
			return f
		}
	}
	if !w.placed {
		if err := w.send(nil); err != nil {
			return stopped{err}
		}
		w.placed = true
	}
	if resync {
		w.resync()
	}
	if !resume {
		return nil
	}
	_, f := w.walk(ctx, w.position+1, false, func(m message) { w.apply(m) })
	w.seen = time.Now()
	return faultOrNil(f)
}

func faultOrNil(f *fault.Fault) error {
	if f == nil {
		return nil
	}
	return f
}

// load learns what the id holds. Messages after a sequence are left to be told.
func (w *watch) load(ctx context.Context, through uint64) *fault.Fault {
	clear(w.known)
	clear(w.missing)
	w.soonest = math.MaxInt64
	end, f := w.walk(ctx, 1, true, func(m message) {
		if name, ok := nameOf(m.subject); ok && m.sequence <= through && bytes.HasPrefix(name.Key, w.from.Prefix) {
			w.position = max(w.position, m.sequence)
			if e, err := read(m.sequence, m.header, nil); err == nil {
				w.know(string(name.Key), e)
			}
		}
	})
	w.checked, w.seen = end, time.Now()
	return f
}

// walk visits all messages of the id from a sequence on and returns the sequence after the last.
func (w *watch) walk(ctx context.Context, from uint64, headersOnly bool, visit func(message)) (uint64, *fault.Fault) {
	filter := w.i.stream + "." + idSubject(w.space, w.from.ID) + ".*"
	for {
		next, done, f := w.i.walk(ctx, w.i.stream, filter, from, maxWalk, headersOnly, func(m message) (bool, error) {
			visit(m)
			return true, nil
		})
		if f != nil || done {
			return next, f
		}
		from = next
	}
}

// know notes a key's newest message.
func (w *watch) know(key string, e entry) {
	k := last{sequence: e.sequence, there: e.record.kind == whole || e.record.kind == parted, expire: e.record.expire}
	if !k.there {
		k.gone = time.Now()
	} else if k.expire != 0 {
		w.soonest = min(w.soonest, k.expire)
	}
	w.known[key] = k
}

// heard takes a change that the server sent.
func (w *watch) heard(m *nats.Msg) {
	sequence, err := strconv.ParseUint(m.Header.Get(sequenceHeader), 10, 64)
	if err == nil {
		w.apply(message{w.i.stream + strings.TrimPrefix(m.Subject, w.i.stream+"-changes"), sequence, m.Header, m.Data})
	}
}

// apply makes events of a message, unless it is old.
func (w *watch) apply(m message) {
	name, ok := nameOf(m.subject)
	if !ok || !bytes.HasPrefix(name.Key, w.from.Prefix) {
		return
	}
	key := string(name.Key)
	before, met := w.known[key]
	if m.sequence <= before.sequence {
		return
	}
	e, err := read(m.sequence, m.header, m.data)
	if err != nil {
		w.resync()
		return
	}
	replaced, err := strconv.ParseUint(m.header.Get(expectedHeader), 10, 64)
	if err != nil || (met && replaced != 0 && replaced != before.sequence) || (!met && replaced > w.position) {
		w.resync()
	}
	if before.there && e.record.kind != lapsed && driver.Expired(before.expire, time.UnixMilli(e.record.mark.millis())) {
		w.event(driver.Lapsed, driver.Item{Name: cloned(name), Version: e.record.mark.version(m.sequence - 1)})
		before.there = false
	}
	w.know(key, e)
	w.position = max(w.position, m.sequence)
	switch e.record.kind {
	case whole, parted:
		w.event(driver.Changed, *e.item(name, false))
	case deleted:
		w.event(driver.Deleted, driver.Item{Name: name, Version: e.version()})
	case lapsed:
		w.event(driver.Lapsed, driver.Item{Name: name, Version: e.version()})
	}
}

func (w *watch) resync() { w.event(driver.Resync, driver.Item{}) }

func (w *watch) event(kind driver.EventKind, it driver.Item) {
	w.events = append(w.events, driver.Event{Kind: kind, Item: it})
}

// lapse removes items whose time has run out, so that all who watch learn of it in the order of the other changes.
func (w *watch) lapse(ctx context.Context) {
	now := w.i.now()
	if now.UnixMilli() < w.soonest {
		return
	}
	var due []string
	w.soonest = math.MaxInt64
	for key, k := range w.known {
		switch {
		case !k.there && time.Since(k.gone) > 2*traceStays:
			delete(w.known, key) // its message is gone by now
		case !k.there || k.expire == 0:
		case driver.Expired(k.expire, now) && len(due) < atOnce && time.Since(k.tried) > time.Second:
			due = append(due, key)
			k.tried = time.Now()
			w.known[key] = k
			fallthrough
		default:
			w.soonest = min(w.soonest, k.expire) // until its message has come
		}
	}
	each(len(due), func(n int) {
		l, t, f := w.i.ready(ctx)
		if f != nil {
			return
		}
		subject := w.i.subject(w.space, driver.Name{ID: w.from.ID, Key: []byte(due[n])})
		// When somebody was faster his message tells of it; when the server does not answer it is tried again.
		w.i.put(ctx, l, subject, &record{kind: lapsed, mark: newMark(t.identity, now)}, nil, w.known[due[n]].sequence)
	})
}

// verify says whether a message that was missing the last time has not come yet, or the stream is another.
func (w *watch) verify(ctx context.Context, l *line) (bool, *fault.Fault) {
	d, f := l.describe(ctx, w.i.stream)
	if f != nil {
		return false, f
	}
	if d.identity() != w.identity {
		l.target.Store(nil)
		return true, nil
	}
	for key, sequence := range w.missing {
		if w.known[key].sequence < sequence {
			return true, nil
		}
	}
	clear(w.missing)
	w.checked, f = w.walk(ctx, w.checked, true, func(m message) {
		name, ok := nameOf(m.subject)
		if key := string(name.Key); ok && bytes.HasPrefix(name.Key, w.from.Prefix) && w.known[key].sequence < m.sequence {
			w.missing[key] = m.sequence
		}
	})
	return false, f
}

// position is the sequence in a version, and whether a watch can go on after it.
func position(version []byte, identity uint64, now time.Time) (uint64, bool) {
	if len(version) != markSize+8 {
		return 0, false
	}
	m := mark(version[:markSize])
	age := now.Sub(time.UnixMilli(m.millis()))
	return binary.BigEndian.Uint64(version[markSize:]), binary.BigEndian.Uint64(m[:]) == identity && age.Abs() < resumeWithin
}

// millis is when a message was written, in milliseconds since 1970.
func (m mark) millis() int64 { return int64(binary.BigEndian.Uint64(m[8:])) }
