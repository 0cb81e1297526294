package nats_test

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/nats"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

var twoMiB = strings.Repeat("x", 2<<20)

// clock is the time, and more.
type clock struct{ ahead atomic.Int64 }

// Now tells the time.
func (c *clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Move moves the clock.
func (c *clock) Move(d time.Duration) { c.ahead.Add(int64(d)) }

// large is a store of large values with a clock, and its server's own client.
type large struct {
	store
	t      *testing.T
	clock  *clock
	server *natsserver.Server
	space  driver.Space
}

func openLarge(t *testing.T) *large {
	l := &large{t: t, clock: &clock{}, server: natsserver.Start(t, natsserver.Options{}), space: conformance.NewSpace()}
	l.store = open(t, driver.Config{Endpoints: []string{l.server.Addr()}, Now: l.clock.Now})
	return l
}

// messages counts the messages of the stream of the parts, those of parts with p and of notes with n.
func (l *large) messages(kind string) int {
	l.t.Helper()
	n := 0
	for subject := range l.subjects() {
		if strings.HasPrefix(subject, "prism-kv-parts."+kind+".") {
			n++
		}
	}
	return n
}

func (l *large) subjects() map[string]uint64 {
	l.t.Helper()
	stream, err := raw(l.t, l.server).Stream(l.t.Context(), "prism-kv-parts")
	if err != nil {
		l.t.Fatal(err)
	}
	info, err := stream.Info(l.t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		l.t.Fatal(err)
	}
	return info.State.Subjects
}

// holds demands how many parts and notes there are.
func (l *large) holds(parts, notes int) {
	l.t.Helper()
	if p, n := l.messages("p"), l.messages("n"); p != parts || n != notes {
		l.t.Errorf("%d parts and %d notes are there, want %d and %d", p, n, parts, notes)
	}
}

func (l *large) sweeps(want int) {
	l.t.Helper()
	if n, err := l.store.(*nats.Instance).SweepParts(l.t.Context()); n != want || err != nil {
		l.t.Errorf("swept %d values, %v; want %d", n, err, want)
	}
}

func (l *large) write(key string, r io.Reader) error {
	_, err := l.WriteValue(l.t.Context(), l.space, put("a", key, ""), r)
	return err
}

// TestPartsGoWithTheirItem: KC-14 chunks_removed_on_delete, and with a value that is replaced, expires or stays.
func TestPartsGoWithTheirItem(t *testing.T) {
	l := openLarge(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.write("k", strings.NewReader(twoMiB)))
	l.holds(4, 1)
	must(l.write("k", strings.NewReader(twoMiB[:1<<20])))
	if p := l.messages("p"); p != 2 {
		t.Errorf("%d parts are left of a value that was replaced, want 2", p)
	}
	if _, err := l.Write(t.Context(), l.space, driver.Write{Op: driver.Touch, Name: put("a", "k", "").Name}); err != nil {
		t.Fatal(err)
	}
	if v, err := l.ReadValue(t.Context(), l.space, put("a", "k", "").Name, 0); err != nil {
		t.Fatal(err)
	} else if n, err := io.Copy(io.Discard, v); n != 1<<20 || err != nil {
		t.Errorf("after a touch: read %d bytes, %v", n, err)
	}
	must(l.write("small", strings.NewReader("small")))
	l.clock.Move(2 * time.Hour)
	l.sweeps(1)
	l.holds(2, 1)
	mustWrite(t, l.store, l.space, driver.Write{Op: driver.Delete, Name: put("a", "k", "").Name})
	l.sweeps(1)
	l.holds(0, 0)
}

// TestUnfinishedValuesAreSwept leaves nothing of a large value that did not come to its end.
func TestUnfinishedValuesAreSwept(t *testing.T) {
	l := openLarge(t)
	broken := errors.New("broken")
	if err := l.write("k", io.MultiReader(strings.NewReader(twoMiB), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	l.holds(0, 1)
	l.sweeps(0) // not yet
	l.clock.Move(2 * time.Hour)
	l.sweeps(1)
	l.holds(0, 0)
	// A writer that was thought to be gone cannot finish.
	slow := &pausing{Reader: strings.NewReader(twoMiB), at: 3, pause: func() {
		l.clock.Move(2 * time.Hour)
		l.sweeps(1)
	}}
	if err := l.write("k", slow); !fault.Is(err, fault.Backend) {
		t.Errorf("got %v, want that it took too long", err)
	}
	l.clock.Move(2 * time.Hour)
	l.sweeps(0)
	l.holds(0, 0)
	if v, err := l.ReadValue(t.Context(), l.space, put("a", "k", "").Name, 0); v != nil || err != nil {
		t.Errorf("got %v, %v", v, err)
	}
}

// pausing is a reader that does something before one of its reads.
type pausing struct {
	io.Reader
	at    int
	pause func()
}

// Read reads.
func (p *pausing) Read(b []byte) (int, error) {
	if p.at--; p.at == 0 {
		p.pause()
	}
	return p.Reader.Read(b)
}

// TestDamagedLargeValue is told of: KC-13 large_checksum_mismatch_data_loss.
func TestDamagedLargeValue(t *testing.T) {
	l := openLarge(t)
	if err := l.write("k", strings.NewReader(twoMiB)); err != nil {
		t.Fatal(err)
	}
	for subject := range l.subjects() {
		if !strings.HasSuffix(subject, ".2") {
			continue
		}
		js := raw(t, l.server)
		stream, err := js.Stream(t.Context(), "prism-kv-parts")
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.GetLastMsgForSubject(t.Context(), subject)
		if err != nil {
			t.Fatal(err)
		}
		m.Header.Del("Nats-Expected-Last-Subject-Sequence")
		m.Data[100] = 'y'
		if _, err := js.PublishMsg(t.Context(), &natsgo.Msg{Subject: subject, Header: m.Header, Data: m.Data}); err != nil {
			t.Fatal(err)
		}
	}
	v, err := l.ReadValue(t.Context(), l.space, put("a", "k", "").Name, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if n, err := io.Copy(io.Discard, v); n != 1<<20 || !fault.Is(err, fault.Checksum) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}
