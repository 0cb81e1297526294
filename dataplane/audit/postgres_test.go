package audit_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/prism-gateway/prism/dataplane/audit"
	"github.com/prism-gateway/prism/shared/auditchain"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// database is a PostgreSQL for records, with a connection of its superuser.
func database(t *testing.T) (*postgresserver.Server, *pgx.Conn) {
	t.Helper()
	s := postgresserver.Start(t, postgresserver.Options{Keep: true, Trust: "prism"})
	return s, superuser(t, s)
}

func superuser(t *testing.T, s *postgresserver.Server) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig("postgres://" + s.Addr() + "/postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password = postgresserver.User, postgresserver.Password
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// table runs a log over a table until the test, or stop, ends it.
func table(t *testing.T, addr, proxy string) (l *audit.Log, stop func()) {
	t.Helper()
	sink, err := audit.NewPostgres(audit.PostgresConfig{Endpoint: addr, Database: "postgres", Proxy: proxy})
	if err != nil {
		t.Fatal(err)
	}
	if l, err = audit.New(audit.Config{Proxy: proxy, Sink: sink, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// lines verifies a chain of the table and counts its records.
func lines(t *testing.T, conn *pgx.Conn, proxy string) (uint64, error) {
	t.Helper()
	rows, err := conn.Query(t.Context(), "SELECT line FROM prism_access_line WHERE chain = $1 ORDER BY number", proxy)
	if err != nil {
		t.Fatal(err)
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var v auditchain.Verifier
	for _, text := range texts {
		if _, err := v.Line([]byte(text)); err != nil {
			return v.Count, err
		}
	}
	return v.Count, nil
}

// SE-16: two proxies make the table together; each access has one record over restarts, and lost connections, of which some are
// lost when the record is already there.
func TestATableHasARecordOfEachAccess(t *testing.T) {
	s, conn := database(t)
	proxies := []string{"proxy-1", "proxy-2"}
	var one sync.Mutex // a connection is used by one at a time
	cuts := 0
	cut := func() {
		one.Lock()
		defer one.Unlock()
		done, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'prism-audit'")
		if err != nil {
			t.Error(err)
		}
		cuts += int(done.RowsAffected())
	}
	for life := range 2 {
		var wg sync.WaitGroup
		for _, proxy := range proxies {
			l, stop := table(t, s.Addr(), proxy)
			wg.Go(func() {
				defer stop()
				for n := range 300 {
					slot := reserve(t, l)
					if n%50 == 25 {
						wg.Go(cut) // while the next are written
					}
					if n%3 == 0 {
						slot.Write(record(n))
					} else if err := slot.WriteThrough(t.Context(), record(n)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if cuts <= life {
			t.Errorf("life %d: only %d connections were cut", life, cuts)
		}
		for _, proxy := range proxies {
			if n, err := lines(t, conn, proxy); err != nil || n != uint64(300*(life+1)) {
				t.Errorf("life %d: %d records of %s, %v", life, n, proxy, err)
			}
		}
	}
	var count int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM prism_access WHERE namespace = 'orders' AND time IS NOT NULL AND result = 'OK'").Scan(&count); err != nil || count != 1200 {
		t.Errorf("the view has %d, %v", count, err)
	}
}

// SE-17
func TestWhileTheTableIsAwayCallsAreRefused(t *testing.T) {
	s, _ := database(t)
	l, stop := table(t, s.Addr(), "proxy-1")
	defer stop()
	if err := reserve(t, l).WriteThrough(t.Context(), record(1)); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	waiting := reserve(t, l) // nobody knows yet
	waiting.Write(record(2))
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		slot, err := l.Reserve()
		if err != nil {
			if !fault.Is(err, fault.AuditUnavailable) {
				t.Error(err)
			}
			break
		}
		if slot.Cancel(); time.Now().After(until) {
			t.Fatal("calls go on that cannot be recorded")
		}
	}
	s.Restart(t)
	if err := reserve(t, l).WriteThrough(t.Context(), record(3)); err != nil {
		t.Fatal(err)
	}
	stop()
	if n, err := lines(t, superuser(t, s), "proxy-1"); err != nil || n != 3 {
		t.Errorf("%d records, %v", n, err)
	}
}

// SE-18
func TestATableKeepsItsRecords(t *testing.T) {
	s, conn := database(t)
	l, stop := table(t, s.Addr(), "proxy-1")
	for n := range 5 {
		reserve(t, l).Write(record(n))
	}
	stop()
	change := "UPDATE prism_access_line SET line = replace(line, 'user3', 'user4') WHERE number = 4"
	for _, statement := range []string{change, "DELETE FROM prism_access_line", "TRUNCATE prism_access_line"} {
		_, err := conn.Exec(t.Context(), statement)
		if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "42501" {
			t.Errorf("%s: %v", statement, err)
		}
	}
	for statement, want := range map[string]string{
		change: "record 4: it was changed",
		"DELETE FROM prism_access_line WHERE number = 3": "the records from 3 to 3 before it are missing",
	} {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, statement := range []string{"ALTER TABLE prism_access_line DISABLE TRIGGER ALL", statement} {
			if _, err := tx.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := lines(t, tx.Conn(), "proxy-1"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", statement, err, want)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Two proxies of one id do not mix their records: who comes second refuses calls.
func TestOfTwoProxiesOfOneIDOneWrites(t *testing.T) {
	s, conn := database(t)
	first, stopFirst := table(t, s.Addr(), "proxy-1")
	reserve(t, first).Cancel()
	second, stopSecond := table(t, s.Addr(), "proxy-1")
	reserve(t, second).Cancel() // both know where the chain ends
	if err := reserve(t, first).WriteThrough(t.Context(), record(1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := reserve(t, second).WriteThrough(ctx, record(2)); !fault.Is(err, fault.AuditUnavailable) {
		t.Errorf("the second: %v", err)
	}
	if _, err := second.Reserve(); err == nil {
		t.Error("the second goes on")
	}
	stopSecond()
	if err := reserve(t, first).WriteThrough(t.Context(), record(3)); err != nil {
		t.Error(err)
	}
	stopFirst()
	if n, err := lines(t, conn, "proxy-1"); err != nil || n != 2 {
		t.Errorf("%d records, %v", n, err)
	}
}

func TestATableOnAnotherMachineNeedsAnAuthority(t *testing.T) {
	for endpoint, ok := range map[string]bool{"127.0.0.1:5432": true, "localhost:5432": true, "db.example.org:5432": false, "db": false, ":5432": false} {
		if _, err := audit.NewPostgres(audit.PostgresConfig{Endpoint: endpoint, Proxy: "p"}); (err == nil) != ok {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}

// A connection that ends after the records are there, and before the answer is, neither doubles them nor breaks the chain.
func TestALostAnswerNeitherDoublesNorBreaks(t *testing.T) {
	s, conn := database(t)
	answers := &cutter{to: s.Addr()}
	l, stop := table(t, answers.listen(t), "proxy-1")
	for n := range 5 {
		if err := reserve(t, l).WriteThrough(t.Context(), record(2*n)); err != nil {
			t.Fatal(err)
		}
		answers.cut.Store(true) // the statement is known to the server now, so its next answer is that of a commit
		if err := reserve(t, l).WriteThrough(t.Context(), record(2*n+1)); err != nil {
			t.Fatal(err)
		}
		if answers.cut.Load() {
			t.Error("no answer was lost")
		}
	}
	stop()
	if n, err := lines(t, conn, "proxy-1"); err != nil || n != 10 {
		t.Errorf("%d records, %v", n, err)
	}
}

// cutter stands before a server. While cut is set, the next answer ends its connection instead of passing, and unsets it.
type cutter struct {
	to  string
	cut atomic.Bool
}

func (c *cutter) listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait() // the log has ended, and closed its connection
	})
	all.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", c.to)
			if err != nil {
				_ = near.Close()
				continue
			}
			all.Go(func() { _, _ = io.Copy(far, near); _ = far.Close() })
			all.Go(func() { c.answers(near, far) })
		}
	})
	return l.Addr().String()
}

func (c *cutter) answers(near, far net.Conn) {
	defer near.Close()
	defer far.Close()
	piece := make([]byte, 64<<10)
	for {
		n, err := far.Read(piece)
		if err != nil || c.cut.CompareAndSwap(true, false) {
			return
		}
		if _, err := near.Write(piece[:n]); err != nil {
			return
		}
	}
}

// A writer that is killed leaves a whole chain in the table, and the next goes on after it.
func TestAKilledWriterLeavesAWholeTable(t *testing.T) {
	if addr := os.Getenv("PRISM_AUDIT_TEST_TABLE"); addr != "" {
		l, _ := table(t, addr, "proxy-1")
		for n := 0; ; n++ {
			_ = reserve(t, l).WriteThrough(t.Context(), record(n))
		}
	}
	s, conn := database(t)
	l, stop := table(t, s.Addr(), "proxy-1") // makes the table
	if err := reserve(t, l).WriteThrough(t.Context(), record(1)); err != nil {
		t.Fatal(err)
	}
	stop()
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAKilledWriterLeavesAWholeTable$")
		cmd.Env = append(os.Environ(), "PRISM_AUDIT_TEST_TABLE="+s.Addr())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before, _ := lines(t, conn, "proxy-1")
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if now, _ := lines(t, conn, "proxy-1"); now > before+20 || time.Now().After(until) {
				break
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	l, stop = table(t, s.Addr(), "proxy-1")
	if err := reserve(t, l).WriteThrough(t.Context(), record(1)); err != nil {
		t.Fatal(err)
	}
	stop()
	if n, err := lines(t, conn, "proxy-1"); err != nil || n < 62 {
		t.Errorf("%d records, %v", n, err)
	}
}
