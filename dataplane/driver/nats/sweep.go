package nats

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/prism-gateway/prism/shared/fault"
)

// sweeper removes values that no item names, until Close.
func (i *Instance) sweeper() {
	for i.rest(i.living, sweepEvery/2+rand.N(sweepEvery)) == nil {
		i.mu.Lock()
		l := i.line
		i.mu.Unlock()
		if l == nil || l.broken() { // who does not use the store does not sweep it
			continue
		}
		ctx, cancel := context.WithTimeout(i.living, sweepEvery)
		if mine, f := i.turn(ctx, l); mine && f == nil {
			i.SweepParts(ctx) // what it could not do the next one does
		}
		cancel()
	}
}

// turn says whether it is this proxy's turn to sweep: nobody has swept for a while, and nobody else was faster.
func (i *Instance) turn(ctx context.Context, l *line) (bool, *fault.Fault) {
	subject := i.partsStream() + ".swept"
	sequence, _, data, f := l.lastMessage(ctx, i.partsStream(), false, subject)
	if f != nil {
		return false, f
	}
	now := i.now()
	if at, ok := noteTime(data); ok && now.Sub(at) < sweepEvery {
		return false, nil
	}
	m := &nats.Msg{Subject: subject, Header: nats.Header{}, Data: binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))}
	_, mine, f := l.store(ctx, m, sequence)
	return mine, f
}

// noteTime is when a note was written.
func noteTime(data []byte) (time.Time, bool) {
	if len(data) < 8 {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(data))), true
}

// SweepParts removes the parts of all values that no item names any more, or that were not finished in time, and says how
// many values there were.
func (i *Instance) SweepParts(ctx context.Context) (int, error) {
	n := 0
	stream, prefix := i.partsStream(), i.partsStream()+".n."
	for from := uint64(1); ; {
		var old []message
		next, done, f := i.walk(ctx, stream, prefix+"*", from, maxWalk, false, func(m message) (bool, error) {
			if at, ok := noteTime(m.data); !ok || i.now().Sub(at) > unfinishedLife {
				old = append(old, m)
			}
			return true, nil
		})
		if f != nil {
			return n, f
		}
		for _, m := range old {
			swept, f := i.sweepPart(ctx, strings.TrimPrefix(m.subject, prefix), m)
			if f != nil {
				return n, f
			}
			if swept {
				n++
			}
		}
		if done {
			return n, nil
		}
		from = next
	}
}

// sweepPart removes a value unless its item names it, or its writer was faster.
func (i *Instance) sweepPart(ctx context.Context, text string, note message) (bool, *fault.Fault) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 16 {
		return false, nil
	}
	name := [16]byte(b)
	l, _, f := i.ready(ctx)
	if f != nil {
		return false, f
	}
	if len(note.data) > 8 {
		// By the leader: an item that a replica does not know yet must not lose its value.
		e, f := l.last(ctx, i.stream, false, string(note.data[8:]))
		if f != nil {
			return false, f
		}
		if e.record != nil && e.record.kind == parted && e.record.large.name == name {
			return false, nil
		}
		// From here on its writer cannot finish it.
		_, stored, f := l.store(ctx, &nats.Msg{Subject: note.subject, Header: nats.Header{}}, note.sequence)
		if f != nil || !stored {
			return false, f
		}
	}
	if f := l.purge(ctx, i.partsStream(), i.partSubject(name, "*")); f != nil {
		return false, f
	}
	return true, l.purge(ctx, i.partsStream(), note.subject)
}
