package postgres_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// chain is all that an error and its causes say, in each way of saying it.
func chain(err error) string {
	var b strings.Builder
	for err != nil {
		fmt.Fprintf(&b, "%v|%+v|%#v|", err, err, err)
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = u.Unwrap()
	}
	return b.String()
}

// TestErrorsOfTheServer are faults whose outcome is known, and no caller sees what the server said (SE-15).
func TestErrorsOfTheServer(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	i, admin := open(t, cfg), connect(t, s, cfg.Settings["database"])
	if _, err := i.Write(t.Context(), "s", put("a", "", "v")); err != nil {
		t.Fatal(err)
	}
	// The server raises the SQLSTATE that an item has for its value.
	execute(t, admin, `CREATE FUNCTION prism.fail() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			RAISE EXCEPTION USING ERRCODE = convert_from(NEW.value, 'UTF8'), MESSAGE = 'what only the server knows';
		END $$`)
	execute(t, admin, "CREATE TRIGGER fail BEFORE INSERT ON prism.item FOR EACH ROW WHEN (octet_length(NEW.value) = 5) EXECUTE FUNCTION prism.fail()")
	for code, want := range map[string]struct {
		code   fault.Code
		reason fault.Reason
	}{
		"40001": {fault.Conflict, fault.TxConflict},                // serialization_failure
		"40P01": {fault.Conflict, fault.TxConflict},                // deadlock_detected
		"57014": {fault.DeadlineExceeded, fault.Backend},           // query_canceled
		"55P03": {fault.DeadlineExceeded, fault.Backend},           // lock_not_available
		"25P03": {fault.DeadlineExceeded, fault.Backend},           // idle_in_transaction_session_timeout
		"25006": {fault.FailedPrecondition, fault.ReadOnly},        // read_only_sql_transaction
		"25000": {fault.Unavailable, fault.BackendDown},            // invalid_transaction_state
		"42501": {fault.Unavailable, fault.BackendDown},            // insufficient_privilege
		"3F000": {fault.Unavailable, fault.BackendDown},            // invalid_schema_name
		"42P01": {fault.Unavailable, fault.BackendDown},            // undefined_table
		"42883": {fault.Unavailable, fault.BackendDown},            // undefined_function
		"42703": {fault.Unavailable, fault.BackendDown},            // undefined_column
		"3D000": {fault.Unavailable, fault.BackendDown},            // invalid_catalog_name
		"08006": {fault.Unavailable, fault.BackendDown},            // connection_failure
		"57P01": {fault.Unavailable, fault.BackendDown},            // admin_shutdown
		"57P03": {fault.Unavailable, fault.BackendDown},            // cannot_connect_now
		"28P01": {fault.Unavailable, fault.CredentialsUnavailable}, // invalid_password
		"28000": {fault.Unavailable, fault.CredentialsUnavailable}, // invalid_authorization_specification
		"53300": {fault.Unavailable, fault.BackendDown},            // too_many_connections
		"53200": {fault.Unavailable, fault.BackendDown},            // out_of_memory
		"53100": {fault.Exhausted, fault.Backend},                  // disk_full
		"58030": {fault.Unavailable, fault.BackendDown},            // io_error
		"XX001": {fault.DataLoss, fault.Checksum},                  // data_corrupted
		"22003": {fault.Internal, fault.Bug},                       // numeric_value_out_of_range
	} {
		t.Run(code, func(t *testing.T) {
			w := put("code", code, code)
			_, err := i.Write(t.Context(), "s", w)
			if err := is(err, want.code, want.reason, fault.NotApplied); err != nil {
				t.Error(err)
			}
			if f := fault.From(err); strings.Contains(f.Text, "only the server") || !strings.Contains(chain(err), "only the server") {
				t.Errorf("the caller is told %q, the log %q", f.Text, chain(err))
			}
			if it, err := i.Get(t.Context(), "s", w.Name, false); err != nil || it != nil {
				t.Errorf("afterwards %v, %v", it, err)
			}
		})
	}
	// One refused write takes none of its batch with it.
	batch := []driver.Write{put("batch", "0", "v"), put("batch", "1", "22003"), put("batch", "2", "v")}
	for n, r := range i.BatchWrite(t.Context(), "s", batch) {
		if (r.Err != nil) != (n == 1) {
			t.Errorf("write %d of a batch: %v", n, r.Err)
		}
	}
}

// TestPasswordIsInNoError whatever goes wrong with it (SE-13), and the caller is told neither address nor user (SE-15).
func TestPasswordIsInNoError(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	const password = `canary'p%40ss" x\?@:/`
	right := config(t, s)
	execute(t, connect(t, s, "postgres"), `CREATE ROLE "o'dd %40" LOGIN SUPERUSER PASSWORD 'canary''p%40ss" x\?@:/'`)
	for name, c := range map[string]struct {
		change func(cfg *driver.Config)
		want   fault.Reason // empty: it works
	}{
		"a strange one, and right": {func(cfg *driver.Config) { cfg.Username = "o'dd %40" }, ""},
		"wrong":                    {func(*driver.Config) {}, fault.CredentialsUnavailable},
		"an unknown role":          {func(cfg *driver.Config) { cfg.Username = "nobody" }, fault.CredentialsUnavailable},
		"an unknown database":      {func(cfg *driver.Config) { cfg.Username, cfg.Settings["database"] = "o'dd %40", "nowhere" }, fault.BackendDown},
		"nobody there":             {func(cfg *driver.Config) { cfg.Endpoints = []string{deadAddr(t)} }, fault.BackendDown},
		"a name that nobody has":   {func(cfg *driver.Config) { cfg.Endpoints = []string{"no-such-host.invalid:5432"} }, fault.BackendDown},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := right
			cfg.Password, cfg.Settings = secret.New(password), map[string]string{"database": right.Settings["database"], "sslmode": "disable"}
			c.change(&cfg)
			_, err := open(t, cfg).Write(t.Context(), "s", put("a", "", "v"))
			if c.want == "" {
				if err != nil {
					t.Error(chain(err))
				}
				return
			}
			if err := is(err, fault.Unavailable, c.want, fault.NotApplied); err != nil {
				t.Error(err)
			}
			if strings.Contains(chain(err)+fmt.Sprintf("%+v %#v", cfg, cfg), "canary") {
				t.Errorf("the password is in %s", chain(err))
			}
			if text := fault.From(err).Unwrap().Error(); strings.Contains(text, cfg.Username) || text == "" {
				t.Errorf("the log is told %q", text)
			}
			if text := fault.From(err).Text; strings.Contains(text, cfg.Endpoints[0]) || strings.Contains(text, "nobody") {
				t.Errorf("the caller is told %q", text)
			}
		})
	}
}

// deadAddr is an address where nobody listens.
func deadAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestSeveralEndpoints finds the one that takes writes.
func TestSeveralEndpoints(t *testing.T) {
	s, readOnly := postgresserver.Start(t, postgresserver.Options{}), postgresserver.Start(t, postgresserver.Options{Settings: []string{"default_transaction_read_only=on"}})
	for name, first := range map[string]string{"the first is dead": deadAddr(t), "the first takes no writes": readOnly.Addr()} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, s)
			cfg.Endpoints, cfg.Settings["database"] = []string{first, s.Addr()}, "postgres"
			i := open(t, cfg)
			if _, err := i.Write(t.Context(), "s", put("a", "", "v")); err != nil {
				t.Fatal(chain(err))
			}
			if it, err := i.Get(t.Context(), "s", put("a", "", "").Name, false); it == nil || err != nil {
				t.Errorf("got %v, %v", it, err)
			}
		})
	}
}

// TestLeastRights has a role that may do no more than it must, and tells what a lesser one lacks.
func TestLeastRights(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{})
	cfg := config(t, s)
	admin := connect(t, s, cfg.Settings["database"])
	execute(t, admin, "CREATE ROLE maker LOGIN PASSWORD 'p'; CREATE ROLE prism_user LOGIN PASSWORD 'p'")
	as := func(role string) driver.Config {
		c := cfg
		c.Username, c.Password = role, secret.New("p")
		return c
	}
	lacks := func(role, grant string) {
		t.Helper()
		_, err := open(t, as(role)).Write(t.Context(), "s", put("a", "", "v"))
		if err := is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied); err != nil {
			t.Fatal(err)
		}
		if text := fault.From(err).Text; !strings.Contains(text, grant) {
			t.Errorf("a role that lacks %s is told %q", grant, text)
		}
	}
	lacks("maker", "grant it CREATE on the database")
	execute(t, admin, "CREATE SCHEMA prism")
	lacks("maker", "grant it USAGE and CREATE on the schema")
	execute(t, admin, "GRANT USAGE, CREATE ON SCHEMA prism TO maker")
	if _, err := open(t, as("maker")).Write(t.Context(), "s", put("a", "", "v")); err != nil {
		t.Fatal(chain(err))
	}
	const use = "grant it USAGE on the schema and SELECT, INSERT, UPDATE and DELETE on its tables"
	execute(t, admin, "REVOKE CREATE ON SCHEMA prism FROM maker")
	if _, err := open(t, as("maker")).Write(t.Context(), "s", put("a", "", "v")); err != nil {
		t.Errorf("once it has made the tables: %s", chain(err))
	}
	lacks("prism_user", use)
	execute(t, admin, "GRANT USAGE ON SCHEMA prism TO prism_user")
	lacks("prism_user", use)
	execute(t, admin, "GRANT SELECT ON ALL TABLES IN SCHEMA prism TO prism_user")
	lacks("prism_user", use)
	execute(t, admin, "GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA prism TO prism_user")
	i := open(t, as("prism_user"))
	once := put("a", "", "1")
	once.Token = &driver.Token{Nonce: [16]byte{1}, Until: time.Now().Add(time.Hour)}
	if _, err := i.Write(t.Context(), "s", once); err != nil {
		t.Error(chain(err))
	}
	if _, err := i.Increment(t.Context(), "s", driver.Increment{Name: once.Name, Delta: 1}); err != nil {
		t.Error(chain(err))
	}
	if _, err := i.Transact(t.Context(), "s", driver.Transaction{ID: []byte("a"), Writes: []driver.Write{put("a", "", "v")}}); err != nil {
		t.Error(chain(err))
	}
	if _, err := i.WriteValue(t.Context(), "s", put("a", "", ""), strings.NewReader(strings.Repeat("x", 2<<20))); err != nil {
		t.Error(chain(err))
	}
	if _, err := i.Write(t.Context(), "s", driver.Write{Op: driver.Delete, Name: once.Name}); err != nil {
		t.Error(chain(err))
	}
	if _, err := i.Sweep(t.Context()); err != nil {
		t.Error(chain(err))
	}
	// The right to make a schema is all that making one needs.
	execute(t, admin, "GRANT CREATE ON DATABASE "+cfg.Settings["database"]+" TO prism_user")
	apart := as("prism_user")
	apart.Settings = map[string]string{"database": cfg.Settings["database"], "schema": "apart", "sslmode": "disable"}
	if _, err := open(t, apart).Write(t.Context(), "s", put("a", "", "v")); err != nil {
		t.Error(chain(err))
	}
}
