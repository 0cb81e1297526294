// Package history has clients change namespaces, notes what they were told, and decides whether that can be true: each
// namespace's history must be linearizable, and the snapshots must hold every acknowledged change and no refused one.
package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/e2e/harness"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// verb is what one attempt wants of a namespace.
type verb int

const (
	create   verb = iota
	update        // from what the caller read
	drain         // the first half of a deletion: no new work
	remove        // the second half
	absent        // a deletion that found nothing
	rollback      // to what a snapshot held
)

// attempt is one attempt to change a namespace.
type attempt struct {
	do       verb
	from, to string // descriptions, each filed once, so they tell the versions apart; empty is no namespace
	message  string
}

type result int

const (
	applied result = iota
	refused        // it did not fit what was there
	unknown        // no answer, or one that does not tell
)

// draining marks the state of a namespace that is being deleted.
const draining = "!"

// register says how a namespace may behave. Its state is its description. An attempt whose outcome nobody knows may have
// been done or not, at any time since it began.
var register = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{""} },
	Step: func(state, input, output any) []any {
		next, fits := step(state.(string), input.(attempt))
		switch output.(result) {
		case applied:
			if fits {
				return []any{next}
			}
		case refused:
			if !fits {
				return []any{state}
			}
		case unknown:
			if fits && next != state {
				return []any{state, next}
			}
			return []any{state}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a == b },
}).ToModel()

// step says what an attempt makes of a state, and whether it can be done there.
func step(state string, a attempt) (next string, fits bool) {
	switch a.do {
	case create:
		return a.to, state == ""
	case update:
		return a.to, state == a.from
	case drain:
		return strings.TrimSuffix(state, draining) + draining, state != ""
	case remove:
		return "", state == "" || strings.HasSuffix(state, draining)
	case absent:
		return "", state == ""
	case rollback:
		return a.to, true
	}
	return "", false
}

// Config says what clients work with.
type Config struct {
	// Request makes a valid request for a namespace. Required.
	Request func(namespace string) *configv1.NamespaceRequest
	// Prefix begins the messages and descriptions of all changes, so that several histories can share a Prism.
	Prefix string
	// Release says how the changes go to the fleet; nil is by the policies. What a release takes back by itself is no
	// client's doing, so a history under policies of waves must go at once.
	Release *controlv1.ReleaseOptions
}

// History notes what clients did to namespaces and what they were told. Its methods may be used from any number of
// goroutines; a namespace that one History changes must be changed by nothing else.
type History struct {
	cfg   Config
	start time.Time
	begun atomic.Int64

	mu       sync.Mutex // guards what follows
	events   map[string][]porcupine.Operation
	known    map[string]result // by message
	acked    map[string]uint64 // message -> snapshot
	deletion map[string]bool   // by message: stands in the history once for each half
	lost     map[string]bool   // by message: the answer said that it was not done
	versions map[string][]uint64
}

// New returns a history of nothing.
func New(cfg Config) *History {
	return &History{
		cfg: cfg, start: time.Now(), events: map[string][]porcupine.Operation{}, known: map[string]result{}, acked: map[string]uint64{},
		deletion: map[string]bool{}, lost: map[string]bool{}, versions: map[string][]uint64{},
	}
}

// Attempt makes one attempt of some kind to change a namespace through a replica.
func (h *History) Attempt(ctx context.Context, random *rand.Rand, admin *harness.Admin, client int, namespace string) {
	n := h.begun.Add(1)
	a := attempt{to: fmt.Sprintf("%schange %d", h.cfg.Prefix, n), message: fmt.Sprintf("%sm-%d", h.cfg.Prefix, n)}
	note := &controlv1.ChangeNote{Author: "e2e", Message: a.message}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	read, err := admin.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: namespace})
	there := err == nil
	if err != nil && status.Code(err) != codes.NotFound {
		return // a replica that is down is no attempt
	}
	r := h.cfg.Request(namespace)
	r.Description = a.to
	op := porcupine.Operation{ClientId: client, Call: time.Since(h.start).Nanoseconds()}
	var snapshot uint64
	switch kind := random.IntN(10); {
	case !there && kind < 8:
		a.do = create
		var out *controlv1.CreateNamespaceResponse
		out, err = admin.Control.CreateNamespace(ctx, &controlv1.CreateNamespaceRequest{Request: r, Note: note, Release: h.cfg.Release})
		snapshot = out.GetNamespace().GetSnapshotVersion()
	case kind < 7 && !read.GetNamespace().GetDraining():
		a.do, a.from = update, read.GetNamespace().GetRequest().GetDescription()
		var out *controlv1.UpdateNamespaceResponse
		out, err = admin.Control.UpdateNamespace(ctx, &controlv1.UpdateNamespaceRequest{Request: r, Version: read.GetNamespace().GetVersion(), Note: note, Release: h.cfg.Release})
		snapshot = out.GetNamespace().GetSnapshotVersion()
	case kind == 7:
		a.do = remove
		var out *controlv1.DeleteNamespaceResponse
		out, err = admin.Control.DeleteNamespace(ctx, &controlv1.DeleteNamespaceRequest{Namespace: namespace, Note: note, Release: h.cfg.Release})
		snapshot = out.GetSnapshotVersion()
	default:
		to := h.version(random, namespace)
		then, readErr := admin.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: namespace, SnapshotVersion: to})
		if to == 0 || readErr != nil && status.Code(readErr) != codes.NotFound || then.GetNamespace().GetDraining() {
			return
		}
		a.do, a.to = rollback, then.GetNamespace().GetRequest().GetDescription()
		op.Call = time.Since(h.start).Nanoseconds()
		_, err = admin.Operator.RollbackSnapshot(ctx, &adminv1.RollbackSnapshotRequest{
			ToVersion: to, Namespace: namespace, AllowShrink: true, Note: note, Release: h.cfg.Release,
		})
	}
	op.Return = time.Since(h.start).Nanoseconds()
	h.add(namespace, a, op, snapshot, err)
}

// RollbackAll makes one attempt to bring everything back to a snapshot that changed one of the namespaces; they are all
// that the history knows.
func (h *History) RollbackAll(ctx context.Context, random *rand.Rand, admin *harness.Admin, client int, namespaces []string) {
	to := h.version(random, namespaces[random.IntN(len(namespaces))])
	if to == 0 {
		return
	}
	a := attempt{do: rollback, message: fmt.Sprintf("%sm-%d", h.cfg.Prefix, h.begun.Add(1))}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	then := make([]string, len(namespaces))
	for i, n := range namespaces {
		out, err := admin.Control.GetNamespace(ctx, &controlv1.GetNamespaceRequest{Namespace: n, SnapshotVersion: to})
		if err != nil && status.Code(err) != codes.NotFound || out.GetNamespace().GetDraining() {
			return
		}
		then[i] = out.GetNamespace().GetRequest().GetDescription()
	}
	op := porcupine.Operation{ClientId: client, Call: time.Since(h.start).Nanoseconds()}
	_, err := admin.Operator.RollbackSnapshot(ctx, &adminv1.RollbackSnapshotRequest{
		ToVersion: to, AllowShrink: true, Note: &controlv1.ChangeNote{Author: "e2e", Message: a.message}, Release: h.cfg.Release,
	})
	op.Return = time.Since(h.start).Nanoseconds()
	for i, n := range namespaces {
		a.to = then[i]
		h.add(n, a, op, 0, err)
	}
}

// Begun is how many attempts were begun.
func (h *History) Begun() int64 { return h.begun.Load() }

// version returns a snapshot in which the namespace was changed, 0 when none is known.
func (h *History) version(random *rand.Rand, namespace string) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.versions[namespace]; len(v) > 0 {
		return v[random.IntN(len(v))]
	}
	return 0
}

func (h *History) add(namespace string, a attempt, op porcupine.Operation, snapshot uint64, err error) {
	res := unknown
	switch status.Code(err) {
	case codes.OK:
		res = applied
	case codes.Aborted, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition:
		res = refused
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	note := func(do verb, res result) {
		a.do = do
		op.Input, op.Output = a, res
		if res == unknown {
			op.Return = 1 << 62
		}
		h.events[namespace] = append(h.events[namespace], op)
	}
	if a.do == remove {
		// The two halves are two commits; one that fails tells little of the other.
		h.deletion[a.message] = true
		switch {
		case res == applied:
			note(drain, applied)
			note(remove, applied)
		case status.Code(err) == codes.NotFound:
			note(absent, applied)
		default:
			note(drain, unknown)
			note(remove, unknown)
			res = unknown
		}
		if res == refused {
			return
		}
	} else if res == refused && a.do == rollback || res == unknown && faultgrpc.FromStatus(err).Outcome == fault.NotApplied {
		h.lost[a.message] = true
		return
	} else {
		note(a.do, res)
	}
	h.known[a.message] = res
	if res == applied && snapshot > 0 {
		if a.do != remove {
			h.versions[namespace] = append(h.versions[namespace], snapshot)
		}
		h.acked[a.message] = snapshot
	}
}

// Check holds what clients were told against each other and against the history that a replica tells, and returns
// what does not fit. least is how many changes must have been applied for that to mean anything.
func (h *History) Check(ctx context.Context, t harness.T, admin *harness.Admin, least int) (problems []string) {
	count := map[result]int{}
	for _, r := range h.known {
		count[r]++
	}
	t.Logf("%d changes applied, %d refused, %d unknown, %d told to be lost", count[applied], count[refused], count[unknown], len(h.lost))
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if count[applied] < least {
		bad("only %d changes were applied: the test proves little", count[applied])
	}
	for name, ops := range h.events {
		if r := porcupine.CheckOperationsTimeout(register, ops, time.Minute); r != porcupine.Ok {
			bad("%s: the history of %d attempts is %v", name, len(ops), r)
		}
	}
	found := map[string][]uint64{}
	next := uint64(0)
	for token := ""; ; {
		page, err := admin.Operator.ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{PageSize: 200, PageToken: token})
		if err != nil {
			t.Fatalf("snapshots: %v", err)
		}
		for _, s := range page.GetSnapshots() {
			if next != 0 && s.GetVersion() != next-1 {
				bad("the history goes from %d to %d", next, s.GetVersion())
			}
			next = s.GetVersion()
			for _, ch := range s.GetChanges() {
				found[ch.GetMessage()] = append(found[ch.GetMessage()], s.GetVersion())
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	for message := range h.lost {
		if len(found[message]) > 0 {
			bad("%s was told to be not applied and is in snapshots %d", message, found[message])
		}
	}
	for message, res := range h.known {
		in, most := found[message], 1
		if h.deletion[message] {
			most = 2
		}
		snapshot, told := h.acked[message]
		switch {
		case len(in) > most:
			bad("%s is in the history %d times: %d", message, len(in), in)
		case res == refused && len(in) > 0:
			bad("%s was refused and is in snapshots %d", message, in)
		case res == applied && told && snapshot >= next && !h.deletion[message] && (len(in) != 1 || in[0] != snapshot):
			bad("%s was acknowledged in snapshot %d and is in %d", message, snapshot, in)
		}
	}
	return problems
}
