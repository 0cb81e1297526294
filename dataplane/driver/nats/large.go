package nats

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// The parts of large values are messages of a stream of their own, under a name that no other value has: p.<name>.<number>.
// Each value has a note beside them, n.<name>, that says whose it is and when it was last known to be wanted. The item is
// written last, when its parts are there; what no item names is swept.
const (
	partBytes  = 512 << 10
	partsAhead = 4 // parts that are under way at a time
	sumHeader  = "Prism-Sum"
	// noteEvery is how often the note of a value that is being written is renewed.
	noteEvery = 10 * time.Minute
	// unfinishedLife is how old the note of a value gets before somebody asks whether an item names it.
	unfinishedLife = 45 * time.Minute
	// sweepEvery is how often that is asked, by one proxy for all.
	sweepEvery = 10 * time.Minute
)

func (i *Instance) partsStream() string { return i.stream + "-parts" }

// partsConfig is that of the stream of the parts.
func (i *Instance) partsConfig() jetstream.StreamConfig {
	return i.streamConfig(i.partsStream(), "parts of large items of Prism", i.partsStream()+".>")
}

func (i *Instance) partSubject(name [16]byte, number string) string {
	return i.partsStream() + ".p." + hex.EncodeToString(name[:]) + "." + number
}

func (i *Instance) noteSubject(name [16]byte) string {
	return i.partsStream() + ".n." + hex.EncodeToString(name[:])
}

// readyParts is the connection with the stream of the parts prepared.
func (i *Instance) readyParts(ctx context.Context) (*line, *target, *fault.Fault) {
	l, f := i.connected(ctx)
	if f != nil {
		return nil, nil, f
	}
	t := l.parts.Load()
	if t == nil {
		t, f = l.prepared(ctx, &l.parts, i.partsConfig())
	}
	return l, t, f
}

// ReadValue opens a value. One that is replaced while it is read ends with the fault of another version.
func (i *Instance) ReadValue(ctx context.Context, space driver.Space, name driver.Name, offset uint64) (*driver.Value, error) {
	e, f := i.last(ctx, i.subject(space, name))
	if f != nil {
		return nil, f.WithOutcome("")
	}
	if !e.there(i.now()) {
		return nil, nil
	}
	v := &driver.Value{Item: *e.item(cloned(name), true)}
	offset = min(offset, v.Size)
	if e.record.kind == whole {
		v.ReadCloser = io.NopCloser(bytes.NewReader(e.value[offset:]))
	} else {
		v.ReadCloser = &reader{ctx: ctx, i: i, large: e.record.large, at: offset}
	}
	return v, nil
}

// reader reads a large value part by part. It is used by one goroutine.
type reader struct {
	ctx   context.Context
	i     *Instance
	large manifest
	at    uint64
	rest  []byte // of the part that at is in
}

// Read gives the next bytes.
func (r *reader) Read(p []byte) (int, error) {
	if r.at == r.large.size {
		return 0, io.EOF
	}
	if len(r.rest) == 0 {
		if f := r.next(); f != nil {
			return 0, f.WithOutcome("")
		}
	}
	n := copy(p, r.rest)
	r.at, r.rest = r.at+uint64(n), r.rest[n:]
	return n, nil
}

func (r *reader) next() *fault.Fault {
	l, t, f := r.i.readyParts(r.ctx)
	if f != nil {
		return f
	}
	part := uint64(r.large.part)
	number := r.at / part
	sequence, header, data, f := l.lastMessage(r.ctx, r.i.partsStream(), t.direct, r.i.partSubject(r.large.name, strconv.FormatUint(number, 10)))
	switch {
	case f != nil:
		return f
	case sequence == 0:
		return fault.New(fault.Conflict, fault.VersionMismatch, "the value was replaced while it was read")
	case header.Get(sumHeader) != sum(data), uint64(len(data)) != min(part, r.large.size-number*part):
		return fault.New(fault.DataLoss, fault.Checksum, "the stored value is damaged")
	}
	r.rest = data[r.at%part:]
	return nil
}

func sum(data []byte) string { return strconv.FormatUint(xxhash.Sum64(data), 16) }

// Close frees nothing: nothing is open between two parts.
func (r *reader) Close() error { return nil }

// WriteValue writes the parts and then the item. What fits into one part is an item like those that Write writes.
func (i *Instance) WriteValue(ctx context.Context, space driver.Space, w driver.Write, r io.Reader) (driver.Written, error) {
	first := make([]byte, partBytes)
	n, err := io.ReadFull(r, first)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		w.Value = first[:n]
		return i.Write(ctx, space, w)
	case err != nil:
		return driver.Written{}, err
	}
	v := &upload{i: i, subject: i.subject(space, w.Name), large: manifest{part: partBytes}}
	rand.Read(v.large.name[:])
	if err := v.write(ctx, first, r); err != nil {
		i.giveUp(ctx, v.large.name)
		return driver.Written{}, err
	}
	done, err := i.change(ctx, space, w.Name, func(old entry, now time.Time) (*change, error) { return i.write(w, &v.large, old, now) })
	if f := fault.From(err); f != nil && f.Outcome == fault.NotApplied {
		i.giveUp(ctx, v.large.name)
	}
	return done, err
}

// upload is a large value that is being written.
type upload struct {
	i       *Instance
	subject string // of the item
	large   manifest
	noted   time.Time
	note    uint64 // the sequence of the note
}

// write writes all parts, of which the first was read already.
func (v *upload) write(ctx context.Context, first []byte, r io.Reader) error {
	if f := v.wanted(ctx); f != nil {
		return f
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var under sync.WaitGroup
	defer under.Wait()
	slots := make(chan struct{}, partsAhead)
	for number, part := 0, first; ; number++ {
		if number > 0 {
			// A part that is under way keeps its bytes, so each has its own.
			part = make([]byte, partBytes)
			n, err := io.ReadFull(r, part)
			if part = part[:n]; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return err
			}
		}
		if v.large.size += uint64(len(part)); v.large.size > driver.MaxLarge {
			return fault.Newf(fault.Invalid, fault.TooLarge, "the value is longer than %d bytes", uint64(driver.MaxLarge)).WithOutcome(fault.NotApplied)
		}
		if len(part) > 0 {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ended(ctx)
			}
			under.Go(func() {
				if f := v.part(ctx, number, part); f != nil {
					cancel(f)
				}
				<-slots
			})
		}
		if len(part) < partBytes {
			break
		}
		if time.Since(v.noted) > noteEvery {
			if f := v.wanted(ctx); f != nil {
				return f
			}
		}
	}
	under.Wait()
	if ctx.Err() != nil {
		return ended(ctx)
	}
	return faultOrNil(v.wanted(ctx))
}

// ended is the fault of an upload whose context has ended: that of a part, or the caller gave up.
func ended(ctx context.Context) error {
	if f, ok := errors.AsType[*fault.Fault](context.Cause(ctx)); ok {
		return f
	}
	return late(ctx.Err()).WithOutcome(fault.NotApplied) // parts by themselves are nothing
}

func (v *upload) part(ctx context.Context, number int, data []byte) *fault.Fault {
	l, _, f := v.i.readyParts(ctx)
	if f != nil {
		return f
	}
	m := &nats.Msg{Subject: v.i.partSubject(v.large.name, strconv.Itoa(number)), Header: nats.Header{sumHeader: {sum(data)}}, Data: data}
	if _, stored, f := l.store(ctx, m, 0); f != nil {
		return f.WithOutcome(fault.NotApplied)
	} else if !stored {
		return fault.New(fault.Internal, fault.Bug, "internal error").WithOutcome(fault.NotApplied)
	}
	return nil
}

// wanted notes that the value is wanted. It fails when it was swept before.
func (v *upload) wanted(ctx context.Context) *fault.Fault {
	l, _, f := v.i.readyParts(ctx)
	if f != nil {
		return f
	}
	v.noted = time.Now()
	data := append(binary.BigEndian.AppendUint64(nil, uint64(v.i.now().UnixMilli())), v.subject...)
	sequence, stored, f := l.store(ctx, &nats.Msg{Subject: v.i.noteSubject(v.large.name), Header: nats.Header{}, Data: data}, v.note)
	if f != nil {
		return f.WithOutcome(fault.NotApplied)
	}
	if !stored {
		return fault.New(fault.DeadlineExceeded, fault.Backend, "the value took too long to arrive").WithOutcome(fault.NotApplied)
	}
	v.note = sequence
	return nil
}

// giveUp removes the parts of a value that no item names. What it cannot remove the sweeper does.
func (i *Instance) giveUp(ctx context.Context, name [16]byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if l, f := i.connected(ctx); f == nil {
		// The note stays for the sweeper: a part whose outcome is not known may still arrive.
		l.purge(ctx, i.partsStream(), i.partSubject(name, "*"))
	}
}

// purge removes the messages of a filter.
func (l *line) purge(ctx context.Context, stream, filter string) *fault.Fault {
	var answer struct {
		Problem *problem `json:"error"`
	}
	return l.api(ctx, "$JS.API.STREAM.PURGE."+stream, map[string]any{"filter": filter}, &answer, &answer.Problem)
}
