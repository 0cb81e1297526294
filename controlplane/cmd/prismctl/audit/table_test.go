package audit_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/auditchain"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// SE-18: over a table as proxies make it, without the triggers that refuse what is done to it here.
func TestVerifyFindsWhatWasDoneToATable(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	t.Setenv("PGPASSWORD", postgresserver.Password)
	database := "postgres://" + postgresserver.User + "@" + s.Addr() + "/postgres?sslmode=disable"
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLE prism_access_line (chain text, number bigint, line text)")
	if out, err := run(t, terminal.Table, "verify", "--postgres", database); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty table: %v\n%s", err, out)
	}
	for _, name := range []string{"proxy-1", "proxy-2"} {
		chain := auditchain.New(name, 0, "")
		for n := range 4 {
			line, err := chain.Append(nil, &auditchain.Record{Time: time.Unix(int64(n), 0).UTC(), Principal: fmt.Sprint("user", n), Namespace: "orders", Result: "OK"})
			if err != nil {
				t.Fatal(err)
			}
			exec("INSERT INTO prism_access_line VALUES ($1, $2, $3)", name, n+1, strings.TrimSuffix(string(line), "\n"))
		}
	}
	if out, err := run(t, terminal.JSON, "verify", "--postgres", database); err != nil || strings.Count(out, "proxy-") != 2 {
		t.Fatalf("whole: %v\n%s", err, out)
	}
	if out, err := run(t, terminal.JSON, "list", "--postgres", database, "--principal", "user2"); err != nil || strings.Count(out, "user2") != 2 || strings.Contains(out, "user1") {
		t.Errorf("list: %v\n%s", err, out)
	}
	exec("CREATE TABLE whole AS TABLE prism_access_line")
	for done, want := range map[string]string{
		"UPDATE prism_access_line SET line = replace(line, 'user1', 'user9') WHERE chain = 'proxy-1' AND number = 2": "record 2: it was changed",
		"DELETE FROM prism_access_line WHERE chain = 'proxy-2' AND number = 3":                                       "the records from 3 to 3 before it are missing",
		"UPDATE prism_access_line SET chain = 'proxy-3' WHERE chain = 'proxy-2'":                                     `of the chain "proxy-2"`,
	} {
		exec(done)
		out, err := run(t, terminal.JSON, "verify", "--postgres", database)
		if err == nil || !strings.Contains(strings.ReplaceAll(out, `\"`, `"`), want) {
			t.Errorf("%s: %v, want %q\n%s", done, err, want, out)
		}
		exec("DELETE FROM prism_access_line")
		exec("INSERT INTO prism_access_line TABLE whole")
	}
}
