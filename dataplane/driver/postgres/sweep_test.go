package postgres_test

import (
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/postgres"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// TestDamagedLargeValue is told of, also when a part is gone.
func TestDamagedLargeValue(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	i, admin := open(t, cfg), connect(t, s, cfg.Settings["database"])
	for name, c := range map[string]struct {
		statement string
		reason    fault.Reason
	}{
		"a byte is another":            {"UPDATE prism.part SET data = set_byte(data, 1000, 0) WHERE number = 2", fault.Checksum},
		"a part is shorter":            {"UPDATE prism.part SET data = substr(data, 2) WHERE number = 2", fault.Checksum},
		"a part is gone":               {"DELETE FROM prism.part WHERE number = 2", fault.Checksum},
		"the value is another's since": {"UPDATE prism.item SET large = 'x'; DELETE FROM prism.part WHERE number = 2", fault.VersionMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			w := put("a", "", "")
			if _, err := i.WriteValue(t.Context(), "s", w, strings.NewReader(strings.Repeat("x", 2<<20))); err != nil {
				t.Fatal(err)
			}
			v, err := i.ReadValue(t.Context(), "s", w.Name, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if _, err := admin.PgConn().Exec(t.Context(), c.statement).ReadAll(); err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, v); n != 1<<20 || !fault.Is(err, c.reason) {
				t.Errorf("read %d bytes, %v, want reason %s", n, err, c.reason)
			}
		})
	}
}

// TestUnfinishedValuesAreSwept leaves no part of a large value that did not come to its end.
func TestUnfinishedValuesAreSwept(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	var later atomic.Int64
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	i, admin := open(t, cfg), connect(t, s, cfg.Settings["database"])
	if _, err := i.Sweep(t.Context()); err != nil { // makes the schema
		t.Fatal(err)
	}
	parts := func() int { return number(t, admin, "SELECT count(*) FROM prism.part") }
	sweep := func() {
		if _, err := i.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
	}
	broken, big, w := errors.New("broken"), strings.Repeat("x", 2<<20), put("a", "", "")
	if _, err := i.WriteValue(t.Context(), "s", w, io.MultiReader(strings.NewReader(big), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if sweep(); parts() != 0 {
		t.Errorf("%d parts are left of a value that broke off", parts())
	}
	// A value that comes to its end two hours after the last part, which a sweeper has met in between.
	slow := &pause{Reader: strings.NewReader(big), at: 1 << 20, do: func() {
		if sweep(); parts() == 0 {
			t.Error("the parts of a value that still comes were swept")
		}
		later.Store(int64(2 * time.Hour))
		sweep()
	}}
	if _, err := i.WriteValue(t.Context(), "s", w, slow); is(err, fault.DeadlineExceeded, fault.Backend, fault.NotApplied) != nil {
		t.Errorf("got %v, want that it took too long", err)
	}
	if sweep(); parts() != 0 {
		t.Errorf("%d parts are left of a value that was too slow", parts())
	}
	if it, err := i.Get(t.Context(), "s", w.Name, true); it != nil || err != nil {
		t.Errorf("a value that was not finished is %v, %v", it, err)
	}
	if _, err := i.WriteValue(t.Context(), "s", w, strings.NewReader(big)); err != nil || parts() != 4 {
		t.Errorf("%d parts, %v", parts(), err)
	}
	if sweep(); parts() != 4 {
		t.Errorf("%d parts are left of a whole value", parts())
	}
	if _, err := i.Write(t.Context(), "s", w); err != nil {
		t.Error(err)
	}
	if sweep(); parts() != 0 || number(t, admin, "SELECT count(*) FROM prism.unfinished") != 0 {
		t.Errorf("%d parts are left of a value that was replaced", parts())
	}
}

// pause does something once, when so many bytes were read.
type pause struct {
	io.Reader
	read, at int
	do       func()
}

// Read reads.
func (p *pause) Read(b []byte) (int, error) {
	if p.read >= p.at && p.do != nil {
		p.do()
		p.do = nil
	}
	n, err := p.Reader.Read(b[:min(len(b), 64<<10)])
	p.read += n
	return n, err
}

// TestSweepersTogether has two proxies remove many expired items while others write some of them again: each is removed once,
// nothing else is, and what somebody holds is passed over.
func TestSweepersTogether(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	cfg.MaxConnections = 4
	one, two, admin := open(t, cfg), open(t, cfg), connect(t, s, cfg.Settings["database"])
	for _, i := range []*postgres.Instance{one, two} {
		if _, err := i.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const expired = 20_000
	execute(t, admin, `INSERT INTO prism.item SELECT 's', int4send(n / 100), int4send(n), 'v', CASE WHEN n % 2 = 0 THEN 1 ELSE 0 END, 1, 0, '', NULL, 'value'
		FROM generate_series(1, 40000) n`)
	execute(t, admin, `INSERT INTO prism.item SELECT 'large', int4send(n), '', 'v', 1, 1, 1, '', int4send(n), '' FROM generate_series(1, 50) n`)
	execute(t, admin, `INSERT INTO prism.part SELECT int4send(n), m, 0, 'data' FROM generate_series(1, 50) n, generate_series(0, 39) m`)
	execute(t, admin, `INSERT INTO prism.token SELECT 's', 'a', int4send(n), '', 1 + n % 2 * 99999999999999, NULL, '{}', '{}', '{}' FROM generate_series(1, 5000) n`)
	hold, err := connect(t, s, cfg.Settings["database"]).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(t.Context(), "SELECT FROM prism.item WHERE space = 's' AND id = int4send(7) AND expire > 0 FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	var total atomic.Int64
	sweep := func(i *postgres.Instance) {
		n, err := i.Sweep(t.Context())
		if err != nil {
			t.Error(chain(err))
		}
		total.Add(int64(n))
	}
	var wait sync.WaitGroup
	for _, i := range []*postgres.Instance{one, two} {
		wait.Go(func() { sweep(i) })
	}
	again := make([]driver.Name, 100)
	for n := range again {
		again[n] = driver.Name{ID: []byte{0, 0, 0, byte(100 + n)}, Key: []byte{0, 0, byte((100 + n) * 100 >> 8), byte((100 + n) * 100 & 255)}}
		wait.Go(func() {
			if done, err := one.Write(t.Context(), "s", driver.Write{Op: driver.Put, Name: again[n], Value: []byte("new")}); err != nil || done.Existed {
				t.Errorf("a write of an expired item: %+v, %v", done, err)
			}
		})
	}
	wait.Wait()
	for _, name := range again {
		if it, err := two.Get(t.Context(), "s", name, false); err != nil || it == nil || string(it.Value) != "new" {
			t.Errorf("what was written meanwhile is %v, %v", it, err)
		}
	}
	if n := number(t, admin, "SELECT count(*) FROM prism.item WHERE expire > 0"); n != 50 {
		t.Errorf("%d expired items are left, want the 50 that somebody holds", n)
	}
	if err := hold.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	sweep(one)
	if n := number(t, admin, "SELECT count(*) FROM prism.item WHERE expire > 0"); n != 0 {
		t.Errorf("%d expired items are left", n)
	}
	if n := number(t, admin, "SELECT count(*) FROM prism.item WHERE value = 'value'"); n != expired {
		t.Errorf("%d items that never expire are left, want %d", n, expired)
	}
	// Of those written again some were removed first.
	if n := total.Load(); n < expired+50-int64(len(again)) || n > expired+50 {
		t.Errorf("%d items were removed, want %d less those written again", n, expired+50)
	}
	if n := number(t, admin, "SELECT (SELECT count(*) FROM prism.part) + (SELECT count(*) FROM prism.unfinished)"); n != 0 {
		t.Errorf("%d parts and names are left", n)
	}
	if n := number(t, admin, "SELECT count(*) FROM prism.token"); n != 2500 {
		t.Errorf("%d tokens are left, want 2500", n)
	}
}
