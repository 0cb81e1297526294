package prism_test

import (
	"fmt"
	"go/ast"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pure packages are functions over values: no SDK, no gRPC, no clock, no goroutine.
var pure = []string{
	"./controlplane/admission/...",
	"./controlplane/selection/...",
	"./controlplane/assignment/...",
	"./controlplane/pipeline/...",
	"./controlplane/snapshot/...",
	"./controlplane/release/...",
	"./controlplane/quota/...",
	"./shared/catalog/...",
	"./shared/placement/...",
	"./shared/ident/...",
	"./shared/manifest/...",
	"./shared/strictyaml/...",
	"./shared/principal/...",
}

// inside are the packages that the programs are made of. e2e is outside: it looks at the programs as a stranger does,
// and may ask etcd or Redis itself.
var inside = []string{"./protos/...", "./shared/...", "./controlplane/...", "./dataplane/..."}

// A rule forbids packages to import packages. Patterns are paths, ours with "./" in front; "/..." at the end means the
// package and everything below it, "/*" everything below it.
type rule struct {
	from, exceptFrom []string
	to, exceptTo     []string
	tests            bool // holds for _test.go files too
	why              string

	// What the rule is for and its nearest permitted neighbour, as {importing package, imported package}: the
	// rule's own test.
	breach, fine edge
}

type edge struct{ from, to string }

var rules = []rule{
	{
		from: []string{"./protos/..."}, to: []string{"./..."}, exceptTo: []string{"./protos/..."}, tests: true,
		why:    "protos is what everything else agrees on, so it depends on nothing of ours",
		breach: edge{"./protos/prism/config/v1", "./shared/ident"}, fine: edge{"./protos/prism/config/v1", "./protos/prism/common/v1"},
	},
	{
		from: []string{"./shared/..."}, to: []string{"./..."}, exceptTo: []string{"./protos/...", "./shared/..."}, tests: true,
		why:    "shared is what both planes agree on, so it knows neither",
		breach: edge{"./shared/client", "./dataplane/routing"}, fine: edge{"./shared/client", "./shared/fault"},
	},
	{
		from: []string{"./controlplane/..."}, to: []string{"./dataplane/...", "./e2e/..."}, tests: true,
		why:    "the planes meet on the wire only; what both need belongs to shared",
		breach: edge{"./controlplane/push", "./dataplane/routing"}, fine: edge{"./controlplane/push", "./shared/manifest"},
	},
	{
		from: []string{"./dataplane/..."}, to: []string{"./controlplane/...", "./e2e/..."}, tests: true,
		why:    "the planes meet on the wire only; what both need belongs to shared",
		breach: edge{"./dataplane/subscribe", "./controlplane/push"}, fine: edge{"./dataplane/subscribe", "./shared/manifest"},
	},
	{
		from: []string{"./e2e/..."}, to: []string{"./..."}, exceptTo: []string{"./protos/...", "./shared/...", "./e2e/..."}, tests: true,
		why:    "e2e proves the programs, not the packages they are made of",
		breach: edge{"./e2e/faults", "./controlplane/store"}, fine: edge{"./e2e/faults", "./shared/client"},
	},
	{
		from: inside, exceptFrom: []string{"./controlplane/cmd/...", "./dataplane/cmd/...", "./controlplane/server/...", "./dataplane/server/..."},
		to: []string{"./controlplane/server/...", "./dataplane/server/...", "./controlplane/cmd/...", "./dataplane/cmd/..."}, tests: true,
		why:    "server composes the program and only its cmd starts it: whoever imports it has turned the arrow round",
		breach: edge{"./controlplane/adminapi", "./controlplane/server"}, fine: edge{"./controlplane/cmd/prism-admin", "./controlplane/server"},
	},
	{
		from: []string{"./controlplane/server/...", "./dataplane/server/..."}, to: []string{"./controlplane/cmd/...", "./dataplane/cmd/..."}, tests: true,
		why:    "cmd starts server, not the other way round",
		breach: edge{"./dataplane/server", "./dataplane/cmd/prism-proxy/flags"}, fine: edge{"./dataplane/server", "./dataplane/routing"},
	},
	{
		from: pure, to: []string{"./controlplane/...", "./dataplane/..."}, exceptTo: pure, tests: true,
		why:    "a pure package is below handlers, loops and adapters and needs none of them",
		breach: edge{"./controlplane/selection", "./controlplane/store"}, fine: edge{"./controlplane/selection", "./controlplane/admission"},
	},
	{
		from: pure, to: []string{"google.golang.org/grpc/...", "go.etcd.io/...", "github.com/envoyproxy/...", "net/http/...", "os/..."},
		why:    "a pure package does no I/O and knows no SDK: the caller brings values",
		breach: edge{"./shared/placement", "google.golang.org/grpc/status"}, fine: edge{"./shared/placement", "github.com/buraksezer/consistent"},
	},
	{
		from: []string{"./controlplane/..."}, exceptFrom: []string{"./controlplane/store/...", "./controlplane/server/...", "./controlplane/cmd/..."},
		to:     []string{"./controlplane/store/..."},
		why:    "only server imports an adapter; declare the interface that is needed beside its user",
		breach: edge{"./controlplane/push", "./controlplane/store"}, fine: edge{"./controlplane/server", "./controlplane/store"},
	},
	{
		from: []string{"./dataplane/..."}, exceptFrom: []string{"./dataplane/driver/...", "./dataplane/server/...", "./dataplane/cmd/..."},
		to:     []string{"./dataplane/driver/*"},
		why:    "only server and the list of drivers import a driver; everyone else knows the contract in dataplane/driver",
		breach: edge{"./dataplane/pattern", "./dataplane/driver/redis"}, fine: edge{"./dataplane/pattern", "./dataplane/driver"},
	},
	{
		from: []string{"./dataplane/routing/...", "./dataplane/driver/...", "./dataplane/pattern/...", "./dataplane/pool/..."},
		to:   []string{"./protos/prism/data/..."}, tests: true,
		why:    "the data API's messages stop at its handlers (dataplane/dataapi)",
		breach: edge{"./dataplane/pattern/claimcheck", "./protos/prism/data/v1"}, fine: edge{"./dataplane/dataapi", "./protos/prism/data/v1"},
	},
	{
		from: []string{"./dataplane/driver/...", "./dataplane/pool/..."}, to: []string{"./protos/..."}, tests: true,
		why:    "a driver speaks the domain's types; generated types stop at handlers and codecs",
		breach: edge{"./dataplane/driver/redis", "./protos/prism/config/v1"}, fine: edge{"./dataplane/assembly", "./protos/prism/config/v1"},
	},
	{
		from: inside, exceptFrom: []string{"./dataplane/driver/redis/..."}, to: []string{"github.com/redis/..."}, tests: true,
		why:    "one SDK, one directory: Redis is dataplane/driver/redis",
		breach: edge{"./dataplane/pool", "github.com/redis/go-redis/v9"}, fine: edge{"./dataplane/driver/redis", "github.com/redis/go-redis/v9"},
	},
	{
		from: inside, exceptFrom: []string{"./dataplane/driver/sqlite/..."}, to: []string{"modernc.org/..."}, tests: true,
		why:    "one SDK, one directory: SQLite is dataplane/driver/sqlite",
		breach: edge{"./controlplane/snapshot", "modernc.org/sqlite"}, fine: edge{"./dataplane/driver/sqlite", "modernc.org/sqlite"},
	},
	{
		from: inside, exceptFrom: []string{"./dataplane/driver/nats/..."}, to: []string{"github.com/nats-io/nats.go/..."}, tests: true,
		why:    "one SDK, one directory: NATS is dataplane/driver/nats",
		breach: edge{"./dataplane/pool", "github.com/nats-io/nats.go"}, fine: edge{"./dataplane/driver/nats", "github.com/nats-io/nats.go"},
	},
	{
		from: inside, exceptFrom: []string{"./controlplane/store/..."}, to: []string{"go.etcd.io/..."}, tests: true,
		why:    "one SDK, one directory: etcd, client and embedded server, is controlplane/store",
		breach: edge{"./controlplane/server", "go.etcd.io/etcd/server/v3/embed"}, fine: edge{"./controlplane/store", "go.etcd.io/etcd/client/v3"},
	},
	{
		from: inside, exceptFrom: []string{"./controlplane/push/..."},
		to: []string{"github.com/envoyproxy/..."}, exceptTo: []string{"github.com/envoyproxy/go-control-plane/envoy/..."}, tests: true,
		why:    "one SDK, one directory: the xDS server is controlplane/push",
		breach: edge{"./dataplane/subscribe", "github.com/envoyproxy/go-control-plane/pkg/cache/v3"}, fine: edge{"./controlplane/push", "github.com/envoyproxy/go-control-plane/pkg/cache/v3"},
	},
	{
		from: inside, exceptFrom: []string{"./controlplane/push/...", "./dataplane/subscribe/...", "./dataplane/simulate/..."},
		to: []string{"github.com/envoyproxy/go-control-plane/envoy/..."}, tests: true,
		why:    "xDS messages are spoken by its two ends, controlplane/push and dataplane/subscribe; simulate counts what passes",
		breach: edge{"./dataplane/assembly", "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"},
		fine:   edge{"./dataplane/subscribe", "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"},
	},
	{
		from: inside, exceptFrom: []string{"./shared/telemetry/trace/..."}, to: []string{"go.opentelemetry.io/..."}, tests: true,
		why:    "one SDK, one directory: OpenTelemetry is shared/telemetry/trace",
		breach: edge{"./dataplane/subscribe", "go.opentelemetry.io/otel/trace"}, fine: edge{"./dataplane/subscribe", "./shared/telemetry/trace"},
	},
	{
		from: inside, exceptFrom: []string{"./shared/certs/..."}, to: []string{"github.com/spiffe/...", "github.com/fsnotify/..."}, tests: true,
		why:    "one SDK, one directory: where certificates come from is shared/certs",
		breach: edge{"./dataplane/server", "github.com/spiffe/go-spiffe/v2/workloadapi"}, fine: edge{"./shared/certs", "github.com/spiffe/go-spiffe/v2/workloadapi"},
	},
	{
		from: inside, exceptFrom: []string{"./dataplane/credential/aws/..."},
		to: []string{"github.com/aws/aws-sdk-go-v2/config/...", "github.com/aws/aws-sdk-go-v2/service/secretsmanager/...", "github.com/aws/aws-sdk-go-v2/service/sts/..."}, tests: true,
		why:    "one SDK, one directory: how AWS programs find their identity, and AWS Secrets Manager, is dataplane/credential/aws",
		breach: edge{"./dataplane/server", "github.com/aws/aws-sdk-go-v2/config"}, fine: edge{"./dataplane/credential/aws", "github.com/aws/aws-sdk-go-v2/config"},
	},
	{
		from: inside, exceptFrom: []string{"./dataplane/credential/vault/..."}, to: []string{"github.com/hashicorp/vault/..."}, tests: true,
		why:    "one SDK, one directory: Vault is dataplane/credential/vault",
		breach: edge{"./dataplane/server", "github.com/hashicorp/vault/api"}, fine: edge{"./dataplane/credential/vault", "github.com/hashicorp/vault/api"},
	},
	{
		from: []string{"./dataplane/..."}, exceptFrom: []string{"./dataplane/credential/...", "./dataplane/server/...", "./dataplane/cmd/..."},
		to:     []string{"./dataplane/credential/*"},
		why:    "only server imports a provider of credentials; everyone else knows the contract in dataplane/credential",
		breach: edge{"./dataplane/pool", "./dataplane/credential/vault"}, fine: edge{"./dataplane/pool", "./dataplane/credential"},
	},
	{
		from: inside, exceptFrom: []string{"./dataplane/credential/google/..."}, to: []string{"cloud.google.com/...", "google.golang.org/api/..."}, tests: true,
		why:    "one SDK, one directory: Google Secret Manager is dataplane/credential/google",
		breach: edge{"./dataplane/server", "cloud.google.com/go/secretmanager/apiv1"}, fine: edge{"./dataplane/credential/google", "cloud.google.com/go/secretmanager/apiv1"},
	},
	{
		from: inside, exceptFrom: []string{"./dataplane/credential/azure/..."}, to: []string{"github.com/Azure/..."}, tests: true,
		why:    "one SDK, one directory: Azure Key Vault is dataplane/credential/azure",
		breach: edge{"./dataplane/server", "github.com/Azure/azure-sdk-for-go/sdk/azidentity"}, fine: edge{"./dataplane/credential/azure", "github.com/Azure/azure-sdk-for-go/sdk/azidentity"},
	},
	{
		from: inside, exceptFrom: []string{"./controlplane/cmd/...", "./dataplane/cmd/..."}, to: []string{"github.com/spf13/..."}, tests: true,
		why:    "command lines are read in cmd; below it a program is configured by values",
		breach: edge{"./dataplane/server", "github.com/spf13/cobra"}, fine: edge{"./controlplane/cmd/prismctl/local", "github.com/spf13/cobra"},
	},
	{
		from: inside, exceptFrom: []string{"./controlplane/cmd/prismctl/...", "./dataplane/driver/nats/..."}, to: []string{"github.com/nats-io/nats-server/..."}, tests: true,
		why:    "only prismctl's local Prism and the NATS driver's tests run a NATS server",
		breach: edge{"./dataplane/server", "github.com/nats-io/nats-server/v2/server"}, fine: edge{"./controlplane/cmd/prismctl/local", "github.com/nats-io/nats-server/v2/server"},
	},
}

// clock are the functions of package time that tell the time or wait.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

func TestImportsPointOneWay(t *testing.T) {
	for _, file := range goFiles(t) {
		for _, imported := range file.imports() {
			for _, r := range rules {
				if r.forbids(file.pkg, imported, file.test) {
					t.Errorf("%s imports %s: %s", file.path, strings.TrimPrefix(imported, "./"), r.why)
				}
			}
		}
	}
}

func TestPurePackagesHaveNoClockAndNoGoroutine(t *testing.T) {
	for _, file := range goFiles(t) {
		if file.test || !matches(pure, file.pkg) {
			continue
		}
		for _, impurity := range impurities(file) {
			t.Error(impurity)
		}
	}
}

func TestEveryRuleCatchesItsBreach(t *testing.T) {
	for _, r := range rules {
		t.Run(r.breach.from+" to "+r.breach.to, func(t *testing.T) {
			if !r.forbids(r.breach.from, r.breach.to, false) {
				t.Error("the breach passes")
			}
			if r.forbids(r.breach.from, r.breach.to, true) != r.tests {
				t.Errorf("in a test the breach is forbidden: %v, want %v", !r.tests, r.tests)
			}
			for _, other := range rules {
				if other.forbids(r.fine.from, r.fine.to, false) {
					t.Errorf("%s may import %s, but is told: %s", r.fine.from, r.fine.to, other.why)
				}
			}
			if r.why == "" {
				t.Error("the rule has no why")
			}
		})
	}
}

func TestImpuritiesAreFound(t *testing.T) {
	for name, tc := range map[string]struct {
		source string
		want   []string
	}{
		"the clock":               {"package p\nimport \"time\"\nvar _ = time.Now", []string{"shared/ident/x.go:3: time.Now"}},
		"the clock, renamed":      {"package p\nimport t \"time\"\nfunc f() { t.Sleep(1) }", []string{"shared/ident/x.go:3: time.Sleep"}},
		"a goroutine":             {"package p\nfunc f() {\n\tgo f()\n}", []string{"shared/ident/x.go:3: go statement"}},
		"durations are no clock":  {"package p\nimport \"time\"\nvar d = time.Second", nil},
		"another package's Now":   {"package p\nimport \"x/time\"\nvar d = time.Now()", nil},
		"a value called time":     {"package p\nfunc f(time struct{ Now int }) int { return time.Now }", nil},
		"both, in the file order": {"package p\nimport \"time\"\nfunc f() {\n\tgo f()\n\ttime.Now()\n}", []string{"shared/ident/x.go:4: go statement", "shared/ident/x.go:5: time.Now"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, impurity := range impurities(parseGo(t, "shared/ident/x.go", tc.source)) {
				found, _, _ := strings.Cut(impurity, " in a pure package")
				got = append(got, found)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
}

func TestPatterns(t *testing.T) {
	for name, tc := range map[string]struct {
		pattern, path string
		want          bool
	}{
		"the package itself":                   {"./a/...", "./a", true},
		"below it":                             {"./a/...", "./a/b/c", true},
		"a longer name is another":             {"./a/...", "./ab", false},
		"without dots only itself":             {"./a", "./a/b", false},
		"a star leaves out the package itself": {"./a/*", "./a", false},
		"a star takes what is below":           {"./a/*", "./a/b/c", true},
		"everything of ours":                   {"./...", "./a", true},
		"everything of ours, not of others":    {"./...", "golang.org/x/sync", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := matches([]string{tc.pattern}, tc.path); got != tc.want {
				t.Errorf("matches(%q, %q) = %v, want %v", tc.pattern, tc.path, got, tc.want)
			}
		})
	}
}

func (r rule) forbids(from, to string, test bool) bool {
	return (r.tests || !test) &&
		matches(r.from, from) && !matches(r.exceptFrom, from) &&
		matches(r.to, to) && !matches(r.exceptTo, to)
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if base, below := strings.CutSuffix(pattern, "/*"); below {
			return strings.HasPrefix(path, base+"/")
		}
		if base, all := strings.CutSuffix(pattern, "/..."); all {
			return path == base || strings.HasPrefix(path, base+"/")
		}
		return path == pattern
	})
}

// impurities says where the file asks for the time, waits, or starts a goroutine.
func impurities(file goFile) []string {
	name := importedAs(file, "time")
	var found []string
	report := func(node ast.Node, what string) {
		found = append(found, fmt.Sprintf("%s:%d: %s in a pure package: the caller passes times and owns goroutines", file.path, file.line(node), what))
	}
	ast.Inspect(file.syntax, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.GoStmt:
			report(node, "go statement")
		case *ast.SelectorExpr:
			if x, ok := node.X.(*ast.Ident); ok && name != "" && x.Name == name && slices.Contains(clock, node.Sel.Name) {
				report(node, "time."+node.Sel.Name)
			}
		}
		return true
	})
	return found
}

// importedAs is the name under which the file knows a package, empty when it does not import it.
func importedAs(file goFile, path string) string {
	for _, spec := range file.syntax.Imports {
		if spec.Path.Value != strconv.Quote(path) {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path[strings.LastIndex(path, "/")+1:]
	}
	return ""
}
