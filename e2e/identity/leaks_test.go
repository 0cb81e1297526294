package identity_test

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
	"github.com/prism-gateway/prism/shared/testserver/vaultserver"
)

// redisPassword is that of the user by whom the provider makes Redis' users.
const redisPassword = "the operator's"

const lease = "a lease"

// canary searches whatever a world's programs put out for what may be nowhere. Every test of a world ends with it.
type canary struct {
	secrets map[string]*regexp.Regexp // by what they are

	mu      sync.Mutex
	leaks   map[string]string // by what and where: the first text around one
	answers int
	spans   int
}

func newCanary() *canary {
	return &canary{leaks: map[string]string{}, secrets: map[string]*regexp.Regexp{
		"a bearer token":                   regexp.MustCompile(`eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}`),
		"a token of the provider":          regexp.MustCompile(`\bs\.[A-Za-z0-9]{24}\b`),
		"a password of a store's user":     regexp.MustCompile(vaultserver.Passwords),
		"a store's user":                   regexp.MustCompile(`v-[^\s"/]{1,40}-(orders|people)-[A-Za-z0-9]{8}\b`),
		"a password of an operator's user": regexp.MustCompile(regexp.QuoteMeta(redisPassword) + "|" + regexp.QuoteMeta(postgresserver.Password)),
		lease:                              regexp.MustCompile(`database/creds/[a-z]+/[A-Za-z0-9]{20,}`),
	}}
}

// plant adds a secret of a test's own.
func (c *canary) plant(what, secret string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secrets[what] = regexp.MustCompile(regexp.QuoteMeta(secret))
}

// search looks through a text, except for what may be there.
func (c *canary) search(where, text string, except ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, pattern := range c.secrets {
		if at := pattern.FindStringIndex(text); at != nil && !slices.Contains(except, what) {
			c.leaks[what+" in "+where] = text[max(0, at[0]-160):min(len(text), at[1]+40)]
		}
	}
}

// dial has it see what callers are answered: every error, and what the control plane says.
func (c *canary) dial() []grpc.DialOption {
	see := func(method string, out any, err error) {
		c.mu.Lock()
		c.answers++
		c.mu.Unlock()
		if err != nil {
			c.search("the error of "+method, prototext.Format(status.Convert(err).Proto()))
		} else if m, ok := out.(proto.Message); ok && !strings.HasPrefix(method, "/prism.data.") {
			c.search("the answer of "+method, prototext.Format(m))
		}
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, in, out any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		err := invoke(ctx, method, in, out, conn, options...)
		see(method, out, err)
		return err
	})}
}

// export has it see the programs' spans.
func (c *canary) export(_ context.Context, in *collectorv1.ExportTraceServiceRequest) error {
	c.mu.Lock()
	c.spans++
	c.mu.Unlock()
	c.search("a span", prototext.Format(in))
	return nil
}

// searchAll looks through what the programs of a world say and keep, while they run: SE-12.
func (c *canary) searchAll(t *testing.T, w *world) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	for _, p := range w.Proxies {
		for _, path := range []string{"/metrics", "/config_dump", "/readyz"} {
			if p.Running() {
				c.search(p.ID+path, w.Get(p.HTTPAddress, path))
			}
		}
	}
	for _, a := range w.Admins {
		if !a.Running() {
			continue
		}
		for _, path := range []string{"/metrics", "/readyz"} {
			c.search(a.Name()+path, w.Get(a.HTTPAddress, path))
		}
		snapshots, err := a.Operator.ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{})
		if err != nil {
			t.Error(err)
		}
		for _, s := range snapshots.GetSnapshots() {
			if _, err := a.Operator.GetSnapshot(ctx, &adminv1.GetSnapshotRequest{Version: s.GetVersion()}); err != nil {
				t.Error(err)
			}
		}
		namespaces, err := a.Control.ListNamespaces(ctx, &controlv1.ListNamespacesRequest{})
		if err != nil {
			t.Error(err)
		}
		for _, n := range namespaces.GetNamespaces() {
			if _, err := a.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: n.GetNamespace()}); err != nil {
				t.Error(err)
			}
		}
		_, backends := a.Operator.ListBackends(ctx, &adminv1.ListBackendsRequest{})
		_, proxies := a.Operator.ListProxies(ctx, &adminv1.ListProxiesRequest{})
		for _, err := range []error{backends, proxies} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	c.searchFiles(t, w.Dir)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, where := range slices.Sorted(maps.Keys(c.leaks)) {
		t.Errorf("%s: …%s…", where, c.leaks[where])
	}
}

// searchFiles looks through logs, etcd's data, the proxies' states, and whatever else the programs have written.
func (c *canary) searchFiles(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // it was a program's for a moment
		}
		var except []string
		if entry.Name() == "leases.journal" {
			except = append(except, lease) // it is there to give them back
			if info, err := entry.Info(); err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has the rights %v", path, info.Mode())
			}
		}
		c.search(strings.TrimPrefix(path, dir), strings.TrimRight(string(text), "\x00"), except...) // etcd's files are long before they are full
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// SE-12 canary_secret_nowhere: whatever goes wrong with secrets at hand, none of them gets out, not even by a crash.
func TestNoSecretGetsOut(t *testing.T) {
	var w *world
	w = startAs(t, &w, 2, own(t, &w))
	for name, backend := range map[string]string{"orders": "pg-main", "people": "redis"} {
		w.Apply(t.Context(), request(name, backend, "vault://database/creds/"+name, configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL))
	}
	token := w.writer(t, "alice")
	alice := w.as(t, token)
	everywhere := func(what string, ctx context.Context, calls int) {
		for _, p := range w.Proxies {
			for range calls {
				for _, namespace := range []string{"orders", "people"} {
					ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
					t.Logf("%s, %s at %s: %s", what, namespace, p.ID, reason(put(ctx, p, namespace, "a")))
					cancel()
				}
			}
		}
	}
	everywhere("well", alice, 1)
	control := newCanary()
	control.search("control", fmt.Sprint(token, " ", w.vault.RootToken(), " ", w.users(t), " ", w.vault.Leases(t, "database/creds/orders/"), " ",
		postgresserver.Password, " ", w.vault.Do(t, http.MethodGet, "database/creds/orders", nil)))
	if len(control.leaks) != len(control.secrets) {
		t.Errorf("of what it searches for, it finds only %v", slices.Sorted(maps.Keys(control.leaks)))
	}
	for what, values := range map[string][]string{
		"in a wrong field":   {"authorization", "Basic " + token},
		"twice":              {"authorization", "Bearer " + token, "x-prism-token", token},
		"cut":                {"authorization", "Bearer " + token[:len(token)-10]},
		"with more behind":   {"authorization", "Bearer " + token + "x"},
		"over":               {"authorization", "Bearer " + w.issuer.Token(t, "alice", -time.Hour, nil)},
		"as another proxy's": {"x-prism-caller-bin", token},
	} {
		everywhere("a token "+what, metadata.AppendToOutgoingContext(t.Context(), values...), 1)
	}
	if _, err := w.Proxies[0].KeyValue.Get(alice, &datav1.GetRequest{Namespace: token, Id: []byte("a")}); err == nil {
		t.Error("a namespace named like a token")
	}

	for user := range w.users(t) { // a store's words about its user
		for _, statement := range []string{fmt.Sprintf(`REVOKE prism_rw FROM %q`, user), fmt.Sprintf(`ALTER ROLE %q NOLOGIN`, user), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'v-%'`} {
			if _, err := w.admin.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
	}
	everywhere("the users may not log in", alice, 2)
	w.vault.Seal(t)
	everywhere("the provider is sealed", w.as(t, w.writer(t, "bob")), 1)
	w.vault.Unseal(t)
	w.db.Stop(t)
	w.redis.Stop(t)
	everywhere("the stores are away", alice, 2)

	for _, p := range w.Proxies { // the runtime prints every goroutine, as it does of a panic
		if err := syscall.Kill(p.Pid(), syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 20*time.Second, p.ID+" ends", func() error {
			if p.Running() {
				return fmt.Errorf("it runs")
			}
			return nil
		})
		if log := string(p.Log()); !strings.Contains(log, "SIGQUIT") || !strings.Contains(log, "goroutine 1 ") {
			t.Errorf("%s has not printed its goroutines", p.ID)
		}
	}
	w.canary.mu.Lock()
	defer w.canary.mu.Unlock()
	if w.canary.answers == 0 || w.canary.spans == 0 {
		t.Errorf("searched %d answers and %d exports of spans", w.canary.answers, w.canary.spans)
	}
}
