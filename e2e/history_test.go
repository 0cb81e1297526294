package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// change is one attempt to change a namespace from what the caller read to something new.
type change struct {
	namespace string
	from, to  string // descriptions, each used once, so they tell the versions apart
	message   string
}

type result int

const (
	applied result = iota
	refused        // the version was not the one named
	unknown        // no answer, or one that does not tell
)

// register says how a namespace may behave: a compare-and-swap on its description. An attempt whose outcome nobody knows may
// have been done or not, at any time since it began.
var register = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{"first"} },
	Step: func(state, input, output any) []any {
		c := input.(change)
		fits := state.(string) == c.from
		switch output.(result) {
		case applied:
			if fits {
				return []any{c.to}
			}
		case refused:
			if !fits {
				return []any{state}
			}
		case unknown:
			if fits {
				return []any{state, c.to}
			}
			return []any{state}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a == b },
}).ToModel()

// TestHistorySurvivesKills makes 500 changes through three replicas over three etcd nodes while a node and a replica
// are killed. Every acknowledged change is in the history exactly once and served by every owner; no refused one is
// there; what nobody acknowledged is there wholly or not at all; and the whole is linearizable.
func TestHistorySurvivesKills(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Admins: 3, Etcd: 3, Backends: backends(t)})
	names := make([]string, 5)
	for i := range names {
		names[i] = fmt.Sprintf("contended-%d", i)
		r := keyvalue(names[i], "redis-main", "redis")
		r.Description = "first"
		c.Apply(ctx, r)
	}

	const workers, total = 5, 500
	var (
		begun  atomic.Int64
		mu     sync.Mutex
		events = map[string][]porcupine.Operation{}
		acked  = map[string]uint64{} // message -> snapshot
		known  = map[string]result{}
	)
	start := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(w)))
			for n := begun.Add(1); n <= total; n = begun.Add(1) {
				admin := c.Admins[random.IntN(len(c.Admins))]
				ch := change{namespace: names[random.IntN(len(names))], to: fmt.Sprintf("change %d", n), message: fmt.Sprintf("m-%d", n)}
				call, end := context.WithTimeout(ctx, 5*time.Second)
				read, err := admin.Control.GetNamespace(call, &controlv1.GetNamespaceRequest{Namespace: ch.namespace})
				if err != nil {
					end()
					continue // a replica that is down is no attempt
				}
				ch.from = read.GetNamespace().GetRequest().GetDescription()
				r := keyvalue(ch.namespace, "redis-main", "redis")
				r.Description = ch.to
				op := porcupine.Operation{ClientId: w, Input: ch, Call: time.Since(start).Nanoseconds()}
				out, err := admin.Control.UpdateNamespace(call, &controlv1.UpdateNamespaceRequest{
					Request: r, Version: read.GetNamespace().GetVersion(), Note: &controlv1.ChangeNote{Author: "e2e", Message: ch.message},
				})
				end()
				op.Return = time.Since(start).Nanoseconds()
				res := unknown
				switch status.Code(err) {
				case codes.OK:
					res = applied
				case codes.Aborted:
					res = refused
				default:
					op.Return = 1 << 62
				}
				op.Output = res
				mu.Lock()
				events[ch.namespace] = append(events[ch.namespace], op)
				known[ch.message] = res
				if res == applied {
					acked[ch.message] = out.GetNamespace().GetSnapshotVersion()
				}
				mu.Unlock()
			}
		})
	}
	harness.Eventually(t, time.Minute, "some changes", func() error { return atLeast(&begun, 100) })
	c.Etcd[0].Kill()
	harness.Eventually(t, time.Minute, "more changes", func() error { return atLeast(&begun, 250) })
	c.Admins[2].Kill()
	harness.Eventually(t, 2*time.Minute, "more changes", func() error { return atLeast(&begun, 400) })
	c.Etcd[0].Start()
	c.Admins[2].Start()
	wg.Wait()
	c.WaitReady(time.Minute)

	count := map[result]int{}
	for _, r := range known {
		count[r]++
	}
	t.Logf("%d applied, %d refused, %d unknown", count[applied], count[refused], count[unknown])
	if count[applied] < 100 {
		t.Errorf("only %d changes were applied: the test proves little", count[applied])
	}
	for name, ops := range events {
		if r := porcupine.CheckOperationsTimeout(register, ops, time.Minute); r != porcupine.Ok {
			t.Errorf("%s: the history of %d attempts is %v", name, len(ops), r)
		}
	}

	found := map[string]uint64{}
	next := uint64(0)
	for token := ""; ; {
		page, err := c.Admins[2].Operator.ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{PageSize: 200, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.GetSnapshots() {
			if next != 0 && s.GetVersion() != next-1 {
				t.Errorf("the history goes from %d to %d", next, s.GetVersion())
			}
			next = s.GetVersion()
			for _, ch := range s.GetChanges() {
				if before, twice := found[ch.GetMessage()]; twice && strings.HasPrefix(ch.GetMessage(), "m-") {
					t.Errorf("%s is in the history twice: in %d and %d", ch.GetMessage(), before, s.GetVersion())
				}
				found[ch.GetMessage()] = s.GetVersion()
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	for message, res := range known {
		snapshot, there := found[message]
		switch {
		case res == applied && !there:
			t.Errorf("%s was acknowledged and is not in the history", message)
		case res == applied && snapshot != acked[message]:
			t.Errorf("%s was acknowledged in snapshot %d and is in %d", message, acked[message], snapshot)
		case res == refused && there:
			t.Errorf("%s was refused and is in the history", message)
		}
	}
	var newest []*configv1.NamespaceResponse
	for _, n := range names {
		for i, a := range c.Admins {
			got, err := a.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: n})
			if err != nil {
				t.Fatalf("admin-%d: %v", i, err)
			}
			if i == 0 {
				newest = append(newest, got.GetNamespace())
			} else if want := newest[len(newest)-1]; got.GetNamespace().GetVersion() != want.GetVersion() {
				t.Errorf("%s is %q at admin-%d and %q at admin-0", n, got.GetNamespace().GetVersion(), i, want.GetVersion())
			}
		}
		c.WaitLive(ctx, n, newest[len(newest)-1].GetSnapshotVersion())
	}
}

func atLeast(n *atomic.Int64, want int64) error {
	if got := n.Load(); got < want {
		return fmt.Errorf("%d of %d", got, want)
	}
	return nil
}
