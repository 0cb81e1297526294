package postgres_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/postgres"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// open opens an instance until the test ends.
func open(t testing.TB, cfg driver.Config) *postgres.Instance {
	t.Helper()
	i, err := postgres.Driver().Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i.(*postgres.Instance)
}

func put(id, key, value string) driver.Write {
	return driver.Write{Op: driver.Put, Name: driver.Name{ID: []byte(id), Key: []byte(key)}, Value: []byte(value)}
}

// is says how err differs from a fault.
func is(err error, code fault.Code, reason fault.Reason, outcome fault.Outcome) error {
	if f := fault.From(err); f == nil || f.Code != code || f.Reason != reason || f.Outcome != outcome {
		return fmt.Errorf("got %+v, want %s, %s, %q", f, code, reason, outcome)
	}
	return nil
}

// number is what a statement of the superuser answers.
func number(t testing.TB, conn *pgx.Conn, text string) (n int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), text).Scan(&n); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return n
}

// until waits until a statement of the superuser answers at least least.
func until(t testing.TB, conn *pgx.Conn, text string, least int) {
	t.Helper()
	for number(t, conn, text) < least {
		if t.Context().Err() != nil {
			t.Fatal(text)
		}
	}
}

// TestInstancesStartTogether has several proxies make the schema at once (LF-08).
func TestInstancesStartTogether(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	cfg.MaxConnections = 2
	var wait sync.WaitGroup
	instances := make([]*postgres.Instance, 8)
	for n := range instances {
		instances[n] = open(t, cfg)
		wait.Go(func() {
			if _, err := instances[n].Write(t.Context(), "s", put(fmt.Sprint(n), "", "v")); err != nil {
				t.Errorf("instance %d: %v: %v", n, err, fault.From(err).Unwrap())
			}
		})
	}
	wait.Wait()
	for n := range instances {
		if it, err := instances[0].Get(t.Context(), "s", put(fmt.Sprint(n), "", "").Name, false); err != nil || it == nil {
			t.Errorf("what instance %d wrote: %v, %v", n, it, err)
		}
	}
	if n := number(t, connect(t, s, cfg.Settings["database"]), "SELECT count(*) FROM prism.format"); n != 1 {
		t.Errorf("%d rows tell the format, want 1", n)
	}
}

// TestSchema is made where it is missing, in the place that a setting names, and left alone where it is (LF-09).
func TestSchema(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	admin := connect(t, s, cfg.Settings["database"])
	i := open(t, cfg)
	w := put("a", "", "v")
	write := func(i *postgres.Instance) error {
		_, err := i.Write(t.Context(), "s", w)
		return err
	}
	if err := write(i); err != nil {
		t.Fatal(err)
	}
	again := open(t, cfg)
	if it, err := again.Get(t.Context(), "s", w.Name, false); err != nil || it == nil {
		t.Errorf("migrations already done: %v, %v", it, err)
	}
	other := cfg
	other.Settings = maps.Clone(cfg.Settings)
	other.Settings["schema"] = "another_1"
	apart := open(t, other)
	if it, err := apart.Get(t.Context(), "s", w.Name, false); err != nil || it != nil {
		t.Errorf("another schema has %v, %v", it, err)
	}
	if n := number(t, admin, "SELECT count(*) FROM another_1.format"); n != 1 {
		t.Errorf("the schema that the setting names has %d formats", n)
	}
	execute(t, admin, "DROP SCHEMA prism CASCADE")
	if err := is(write(i), fault.Unavailable, fault.BackendDown, fault.NotApplied); err != nil {
		t.Errorf("a write into missing tables: %v", err)
	}
	if err := write(i); err != nil {
		t.Errorf("the tables are not made again: %v", err)
	}
	execute(t, admin, "UPDATE prism.format SET version = 99")
	if err := write(open(t, cfg)); is(err, fault.FailedPrecondition, fault.Backend, fault.NotApplied) != nil {
		t.Errorf("a format that nobody knows: %v", err)
	}
}

// TestServerThatTakesNoWrites refuses them so and takes them when the server does again (LF-10).
func TestServerThatTakesNoWrites(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	i, admin := open(t, cfg), connect(t, s, "postgres")
	set := func(value string) {
		t.Helper()
		execute(t, admin, "ALTER SYSTEM SET default_transaction_read_only = "+value)
		execute(t, admin, "SELECT pg_reload_conf()")
	}
	// A session learns of a new setting at a time of its own.
	becomes := func(refused bool) {
		t.Helper()
		for n := 0; ; n++ {
			_, err := i.Write(t.Context(), "s", put("a", fmt.Sprint(n), "v"))
			if err != nil && is(err, fault.FailedPrecondition, fault.ReadOnly, fault.NotApplied) != nil {
				t.Fatal(is(err, fault.FailedPrecondition, fault.ReadOnly, fault.NotApplied))
			}
			if (err != nil) == refused {
				return
			}
		}
	}
	becomes(false)
	set("on")
	becomes(true)
	if err := is(func() error { _, err := open(t, cfg).Write(t.Context(), "s", put("b", "", "v")); return err }(),
		fault.FailedPrecondition, fault.ReadOnly, fault.NotApplied); err != nil {
		t.Errorf("a first call: %v", err)
	}
	set("off")
	becomes(false)
}

// TestFewConnections has 10 callers share 1 and 3 connections (LF-17).
func TestFewConnections(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	for _, connections := range []int{1, 3} {
		cfg := config(t, s)
		cfg.MaxConnections = connections
		admin, i := connect(t, s, cfg.Settings["database"]), open(t, cfg)
		var wait sync.WaitGroup
		for caller := range 10 {
			wait.Go(func() {
				for n := range 20 {
					w := put(fmt.Sprint(caller), fmt.Sprint(n), "v")
					if _, err := i.Write(t.Context(), "s", w); err != nil {
						t.Errorf("write: %v", err)
					}
					if it, err := i.Get(t.Context(), "s", w.Name, false); it == nil || err != nil {
						t.Errorf("get: %v, %v", it, err)
					}
					if items, _, err := i.Scan(t.Context(), "s", driver.Range{ID: w.ID, Limit: 100, MaxBytes: 1 << 20}); len(items) != n+1 || err != nil {
						t.Errorf("scan: %d items, %v", len(items), err)
					}
				}
			})
		}
		wait.Wait()
		if n := number(t, admin, ours); n == 0 || n > connections {
			t.Errorf("%d connections, want at most %d", n, connections)
		}
	}
}

// ours counts the connections of a database's instances.
const ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'prism' AND datname = current_database()"

// TestKilledServer loses nothing that was acknowledged and does nothing that was said not to be.
func TestKilledServer(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	i := open(t, config(t, s))
	if _, err := i.Write(t.Context(), "s", put("first", "", "v")); err != nil {
		t.Fatal(err)
	}
	type attempt struct {
		name driver.Name
		err  error
	}
	const callers = 8
	attempts := make([][]attempt, callers)
	var acknowledged atomic.Int64
	loaded, recovered := make(chan struct{}), make(chan struct{})
	var wait sync.WaitGroup
	for caller := range callers {
		wait.Go(func() {
			for n := 0; ; n++ {
				w := put(fmt.Sprint(caller), fmt.Sprint(n), "v")
				_, err := i.Write(t.Context(), "s", w)
				attempts[caller] = append(attempts[caller], attempt{w.Name, err})
				if err == nil && acknowledged.Add(1) == 500 {
					close(loaded)
				}
				select {
				case <-recovered:
					return
				default:
				}
			}
		})
	}
	for range 3 {
		<-loaded
		s.Kill()
		s.Restart(t)
		loaded = make(chan struct{})
		close(loaded)
		before := acknowledged.Load()
		for acknowledged.Load() < before+100 {
			if t.Context().Err() != nil {
				t.Fatal("no write was acknowledged after the server came back")
			}
		}
	}
	close(recovered)
	wait.Wait()
	outcomes := map[fault.Outcome]int{}
	for _, a := range attempts {
		for _, a := range a {
			it, err := i.Get(t.Context(), "s", a.name, false)
			if err != nil {
				t.Fatal(err)
			}
			outcome := fault.Applied
			if f := fault.From(a.err); f != nil {
				if outcome = f.Outcome; f.Code != fault.Unavailable || f.Reason != fault.BackendDown {
					t.Errorf("%s: %+v: %v", a.name.Key, f, f.Unwrap())
				}
			}
			if outcomes[outcome]++; outcome == fault.Applied && it == nil || outcome == fault.NotApplied && it != nil {
				t.Errorf("%s/%s: said to be %s, found %v", a.name.ID, a.name.Key, outcome, it)
			}
		}
	}
	if outcomes[fault.Applied] == 0 || outcomes[fault.NotApplied]+outcomes[fault.OutcomeUnknown] == 0 {
		t.Errorf("the server was not killed under load: %v", outcomes)
	}
	t.Logf("outcomes: %v", outcomes)
}

// TestConnectionThatBreaks costs the calls that it carried, and no other connection.
func TestConnectionThatBreaks(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	i, admin := open(t, cfg), connect(t, s, cfg.Settings["database"])
	load := func() (failed int) {
		var n atomic.Int64
		var wait sync.WaitGroup
		for caller := range 16 {
			wait.Go(func() {
				for m := range 30 {
					if _, err := i.Write(t.Context(), "s", put(fmt.Sprint(caller), fmt.Sprint(m), "v")); err != nil {
						n.Add(1)
					}
					if _, err := i.Get(t.Context(), "s", put(fmt.Sprint(caller), fmt.Sprint(m), "v").Name, false); err != nil {
						t.Errorf("a read failed: %v", err)
					}
				}
			})
		}
		wait.Wait()
		return int(n.Load())
	}
	for number(t, admin, ours) < 3 {
		load()
	}
	const pids = "SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE application_name = 'prism' AND datname = current_database()"
	var before, after []int32
	if err := admin.QueryRow(t.Context(), pids).Scan(&before); err != nil {
		t.Fatal(err)
	}
	execute(t, admin, fmt.Sprintf("SELECT pg_terminate_backend(%d, 10000)", before[0]))
	load()
	if err := admin.QueryRow(t.Context(), pids).Scan(&after); err != nil {
		t.Fatal(err)
	}
	left := map[int32]bool{}
	for _, pid := range after {
		left[pid] = true
	}
	for _, pid := range before[1:] {
		if !left[pid] {
			t.Errorf("connections were %v, the first was broken, and are %v", before, after)
			break
		}
	}
}

// TestLongAnswersDelayNoShortOnes reads and writes items while more parts are on their way than there are connections.
func TestLongAnswersDelayNoShortOnes(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	i, admin := open(t, cfg), connect(t, s, cfg.Settings["database"])
	big := strings.Repeat("x", 1<<20)
	if _, err := i.WriteValue(t.Context(), "s", put("large", "", ""), strings.NewReader(big)); err != nil {
		t.Fatal(err)
	}
	hold, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(t.Context(), "LOCK TABLE prism.part IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for n := range 10 {
		wait.Go(func() {
			if _, err := i.WriteValue(t.Context(), "s", put("large", fmt.Sprint(n), ""), strings.NewReader(big)); err != nil {
				t.Errorf("write of a large value: %v", err)
			}
		})
		wait.Go(func() {
			v, err := i.ReadValue(t.Context(), "s", put("large", "", "").Name, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer v.Close()
			if _, err := v.Read(make([]byte, 1)); err != nil {
				t.Errorf("read of a large value: %v", err)
			}
		})
	}
	until(t, connect(t, s, cfg.Settings["database"]), "SELECT count(*) FROM pg_locks WHERE NOT granted", 2)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for n := range 100 {
		w := put("small", fmt.Sprint(n), "v")
		if _, err := i.Write(ctx, "s", w); err != nil {
			t.Fatalf("write: %v", err)
		}
		if it, err := i.Get(ctx, "s", w.Name, false); it == nil || err != nil {
			t.Fatalf("get: %v, %v", it, err)
		}
	}
	if err := hold.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait.Wait()
}

// TestTimeRunsOut tells a call that waited for a connection from one that was sent.
func TestTimeRunsOut(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	cfg.MaxConnections = 1
	i, other, admin := open(t, cfg), open(t, cfg), connect(t, s, cfg.Settings["database"])
	w := put("a", "", "v")
	for _, i := range []*postgres.Instance{i, other} {
		if _, err := i.Write(t.Context(), "s", w); err != nil {
			t.Fatal(err)
		}
	}
	hold, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hold.Exec(t.Context(), "LOCK TABLE prism.item IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	sent, giveUp := context.WithCancel(t.Context())
	read := make(chan error, 1)
	go func() { // it has the one connection
		_, err := i.Get(sent, "s", w.Name, false)
		read <- err
	}()
	look := connect(t, s, cfg.Settings["database"])
	until(t, look, "SELECT count(*) FROM pg_locks WHERE NOT granted", 1)
	short := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := i.Write(ctx, "s", w)
		return err
	}
	if err := is(short(), fault.DeadlineExceeded, fault.Pool, fault.NotApplied); err != nil {
		t.Errorf("while it waits for a connection: %v", err)
	}
	ctx, leave := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, leave)
	_, err = i.Write(ctx, "s", w)
	if err := is(err, fault.Cancelled, fault.Client, fault.NotApplied); err != nil {
		t.Errorf("given up while it waits for a connection: %v", err)
	}
	giveUp()
	if err := is(<-read, fault.Cancelled, fault.Client, ""); err != nil {
		t.Errorf("a read that was given up: %v", err)
	}
	ctx, leave = context.WithTimeout(t.Context(), 3*time.Second)
	defer leave()
	_, err = other.Write(ctx, "s", w)
	if err := is(err, fault.DeadlineExceeded, fault.Backend, fault.OutcomeUnknown); err != nil {
		t.Errorf("when it was sent: %v", err)
	}
	if err := hold.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Write(t.Context(), "s", w); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
