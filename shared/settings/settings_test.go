package settings_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/settings"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

func TestDefaultsAreComplete(t *testing.T) {
	admin, err := settings.LoadAdmin("", none)
	if err != nil {
		t.Fatal(err)
	}
	if admin.GetListen() != "127.0.0.1:8981" || admin.GetPartitions() != 1024 || admin.GetHistory().GetSnapshots() != 1000 || admin.GetEtcd().GetPrefix() != "/prism" {
		t.Errorf("got %v", admin)
	}
	proxy, err := settings.LoadProxy("", none)
	if err != nil {
		t.Fatal(err)
	}
	if proxy.GetListen() != "127.0.0.1:8980" || proxy.GetId() == "" || len(proxy.GetAdminEndpoints()) != 1 {
		t.Errorf("got %v", proxy)
	}
}

func TestTheFilesThatShipAreGood(t *testing.T) {
	admin, err := settings.LoadAdmin(filepath.Join("..", "..", "deployments", "programs", "prism-admin.yaml"), none)
	if err != nil {
		t.Fatal(err)
	}
	if admin.GetRelease().GetScoped().GetSoak().AsDuration() != 30*time.Second || admin.GetQuotas().GetTeams()["payments"].GetWeight() != 2 {
		t.Errorf("got %v", admin)
	}
	proxy, err := settings.LoadProxy(filepath.Join("..", "..", "deployments", "programs", "prism-proxy.yaml"), none)
	if err != nil {
		t.Fatal(err)
	}
	if proxy.GetId() != "proxy-1" || proxy.GetValidator() {
		t.Errorf("got %v", proxy)
	}
}

func TestAFileReplacesDefaultsAndVariablesReplaceTheFile(t *testing.T) {
	path := write(t, `listen: 127.0.0.1:7001
partitions: 64
etcd: {endpoints: [a:1, b:2]}
history: {age: 7d}
initial_backends:
- {name: kv-main, type: sqlite, endpoints: [data.db]}
`)
	c, err := settings.LoadAdmin(path, env{"PRISM_ADMIN_PORT": "7100", "PRISM_ETCD_ENDPOINTS": "c:3, d:4", "PRISM_FLEET_PORT": "", "PRISM_JOURNAL_DIR": "elsewhere"}.lookup)
	if err != nil {
		t.Fatal(err)
	}
	if c.GetListen() != "127.0.0.1:7100" || c.GetFleetListen() != "127.0.0.1:18000" {
		t.Errorf("listens on %s and %s", c.GetListen(), c.GetFleetListen())
	}
	if c.GetJournal().GetDir() != "elsewhere" || c.GetJournal().GetMaxBytes() != 64<<20 {
		t.Errorf("journal %v", c.GetJournal())
	}
	if got := strings.Join(c.GetEtcd().GetEndpoints(), " "); got != "c:3 d:4" {
		t.Errorf("etcd at %s", got)
	}
	if c.GetHistory().GetAge().AsDuration() != 7*24*time.Hour || c.GetHistory().GetSnapshots() != 1000 || c.GetEtcd().GetPrefix() != "/prism" {
		t.Errorf("fields beside those of the file lost their defaults: %v", c)
	}
	if c.GetInitialBackends()[0].GetName() != "kv-main" || c.GetPartitions() != 64 {
		t.Errorf("got %v", c)
	}
}

func TestSaysWhatIsWrongAndWhere(t *testing.T) {
	for name, tc := range map[string]struct {
		file string
		env  env
		want []string // one problem each, in order
	}{
		"an unknown key":               {"listn: x", nil, []string{`a.yaml:1: unknown field "listn"; did you mean "listen"?`}},
		"a repeated key":               {"id: a\nid: b", nil, []string{`a.yaml:2: key "id" is there twice, first on line 1`}},
		"a bad duration":               {"id: a\ndrain_timeout: 5", nil, []string{`a.yaml:2: drain_timeout: "5": want a duration`}},
		"a duration out of range":      {"drain_timeout: 2h", nil, []string{"a.yaml:1: drain_timeout: 2h: want a duration from 1ms to 1h"}},
		"no port":                      {"listen: localhost", nil, []string{`a.yaml:1: listen: address "localhost": want host:port`}},
		"a port too high":              {"listen: 127.0.0.1:70000", nil, []string{`a.yaml:1: listen: address "127.0.0.1:70000": the port must be from 0 to 65535`}},
		"a port by name":               {"listen: 127.0.0.1:http", nil, []string{"a.yaml:1: listen: "}},
		"a URL":                        {"listen: http://127.0.0.1:80", nil, []string{"want host:port, not a URL"}},
		"a wrong type":                 {"labels: [a]", nil, []string{"a.yaml:1: labels: want a mapping of names to values, not a list"}},
		"an address others can reach":  {"\nlisten: 0.0.0.0:8980", nil, []string{"a.yaml:2: listen: address \"0.0.0.0:8980\" can be reached from other machines"}},
		"every interface":              {"listen: :8980", nil, []string{"insecure_listen: true"}},
		"a bad endpoint":               {"admin_endpoints:\n- a:1\n- b", nil, []string{`a.yaml:3: admin_endpoints[1]: address "b"`}},
		"an endpoint without a host":   {"admin_endpoints: [':1']", nil, []string{"the host is missing"}},
		"no endpoint":                  {"admin_endpoints: []", nil, nil},
		"two documents":                {"id: a\n---\nid: b", nil, []string{"a.yaml:3: want one document, not several"}},
		"a bad port in a variable":     {"id: a", env{"PRISM_DATA_PORT": "x"}, []string{`environment variable PRISM_DATA_PORT: "x": want a port from 0 to 65535`}},
		"a bad switch in a variable":   {"id: a", env{"PRISM_PROXY_VALIDATOR": "maybe"}, []string{`environment variable PRISM_PROXY_VALIDATOR: "maybe": want true or false`}},
		"a bad endpoint in a variable": {"id: a", env{"PRISM_ADMIN_ENDPOINT": "a:1,b"}, []string{`environment variable PRISM_ADMIN_ENDPOINT: address "b"`}},
		"a bad id in a variable":       {"id: a", env{"PRISM_PROXY_ID": "a b"}, []string{"environment variable PRISM_PROXY_ID: "}},
		"one address for two":          {"listen: 127.0.0.1:9901", nil, []string{"http_listen: 127.0.0.1:9901 is the address of listen already"}},
		"a level that is none":         {"log_level: loud", nil, []string{`a.yaml:1: log_level: "loud": want one of debug, info, warn, error`}},
		"everything at once": {"advertise: x\nlisten: y\nhttp_listen: 0.0.0.0:1", nil, []string{
			"a.yaml:1: advertise: ", "a.yaml:2: listen: ", "a.yaml:3: http_listen: "}},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, tc.file)
			_, err := settings.LoadProxy(path, tc.env.lookup)
			if len(tc.want) == 0 {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			problems, ok := errors.AsType[strictyaml.Errors](err)
			if !ok || len(problems) != len(tc.want) {
				t.Fatalf("got %v\nwant %d problems", err, len(tc.want))
			}
			for i, want := range tc.want {
				if got := strings.ReplaceAll(problems[i].Error(), filepath.Dir(path)+"/", ""); !strings.Contains(got, want) {
					t.Errorf("got %s\nwant %s", got, want)
				}
			}
		})
	}
}

func TestAMissingFileIsNamed(t *testing.T) {
	if _, err := settings.LoadAdmin("/nowhere/prism.yaml", none); err == nil || err.Error() != "/nowhere/prism.yaml: cannot read it: no such file or directory" {
		t.Errorf("got %v", err)
	}
}

func TestFlagsAreCheckedLikeTheRest(t *testing.T) {
	_, err := settings.LoadProxy("", none, func(c *bootstrapv1.ProxyConfig) { c.Id, c.LogLevel = "a b", "loud" })
	if problems, ok := errors.AsType[strictyaml.Errors](err); !ok || len(problems) != 2 || problems[0].Field != "id" || problems[1].Field != "log_level" {
		t.Errorf("got %v", err)
	}
}

func TestPartitionsFillTheirGroups(t *testing.T) {
	if _, err := settings.LoadAdmin(write(t, "partitions: 33"), none); err == nil || !strings.Contains(err.Error(), "partitions: 33: want a multiple of 32") {
		t.Errorf("got %v", err)
	}
}

func TestANameIsExplainedInWords(t *testing.T) {
	path := write(t, "replica_id: a\ninitial_backends:\n- name: Redis_A\n  type: redis\n")
	_, err := settings.LoadAdmin(path, none)
	if want := `a.yaml:3: initial_backends[0].name: "Redis_A": want a lower-case letter, then 2 to 62 of a-z, 0-9 and '-'`; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestReleasePoliciesAreChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		file string
		want string // empty: it loads
	}{
		"none":                      {"id: a", ""},
		"waves with defaults":       {"release:\n  scoped: {}", ""},
		"at once":                   {"release:\n  additive: {at_once: true}", ""},
		"waves in full":             {"release: {shared: {first_percent: 10, soak: 5m, silence: 1m, max_failed_points: 0.5, max_latency_factor: 1.5, min_calls: 1000}}", ""},
		"an unknown class":          {"release:\n  scope: {}", `a.yaml:2: release: unknown field "scope"; did you mean "scoped"?`},
		"an unknown field":          {"release:\n  scoped:\n    soaked: 1m", `a.yaml:3: release.scoped: unknown field "soaked"; did you mean "soak"?`},
		"more than all":             {"release:\n  scoped:\n    first_percent: 101", "a.yaml:3: release.scoped.first_percent: must be less than or equal to 100"},
		"no time to answer":         {"release:\n  rollback:\n    silence: 0s", "a.yaml:3: release.rollback.silence: 0s: want a duration from 1s to 1h"},
		"a soak without a unit":     {"release:\n  shared:\n    soak: 30", `a.yaml:3: release.shared.soak: "30": want a duration`},
		"at once and in waves":      {"release:\n  scoped:\n    at_once: true\n    soak: 30s", "a.yaml:2: release.scoped: at_once passes the waves by"},
		"a share that is no number": {"release: {scoped: {max_failed_points: .nan}}", "a.yaml:1: release.scoped.max_failed_points: "},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, strings.Replace(tc.file, "id: a", "replica_id: a", 1))
			_, err := settings.LoadAdmin(path, none)
			if tc.want == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), filepath.Dir(path)+"/", ""), tc.want) {
				t.Errorf("got %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestLoopback(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:1": true, "127.8.8.8:1": true, "[::1]:1": true, "localhost:0": true,
		"0.0.0.0:1": false, ":1": false, "[::]:1": false, "10.0.0.1:1": false, "example.org:1": false,
	} {
		if err := settings.CheckLoopback(address, false); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
		if err := settings.CheckLoopback(address, true); err != nil {
			t.Errorf("%s, insecure: %v", address, err)
		}
	}
	if settings.CheckLoopback("nonsense", true) == nil {
		t.Error("nonsense is an address")
	}
}

type env map[string]string

func (e env) lookup(name string) (string, bool) {
	v, ok := e[name]
	return v, ok
}

func none(string) (string, bool) { return "", false }

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestQuotasAreChecked(t *testing.T) {
	path := write(t, "quotas:\n  default: {namespaces: 200}\n  teams:\n    accounts: {changes_per_minute: 600, weight: 4}\n")
	c, err := settings.LoadAdmin(path, none)
	if err != nil {
		t.Fatal(err)
	}
	if q := c.GetQuotas(); q.GetDefault().GetNamespaces() != 200 || q.GetTeams()["accounts"].GetWeight() != 4 || q.GetTeams()["accounts"].GetChangesPerMinute() != 600 {
		t.Errorf("%v", q)
	}
	for name, text := range map[string]string{
		"a team that cannot be": "quotas: {teams: {Accounts: {namespaces: 1}}}\n",
		"a weight too large":    "quotas: {default: {weight: 2000}}\n",
		"an unknown quota":      "quotas: {default: {namespace: 1}}\n",
	} {
		if _, err := settings.LoadAdmin(write(t, text), none); err == nil || !strings.Contains(err.Error(), "quotas") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
