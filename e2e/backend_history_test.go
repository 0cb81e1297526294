package e2e_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// sent is one attempt of a client, and how it ended.
type sent struct {
	op       string // increment, put, get
	n        int    // the client's count of increments or of puts
	again    bool   // an increment that was sent before, with its token
	outcome  fault.Outcome
	reason   fault.Reason
	got      int64 // the sum, or the number in the value read
	ok       bool
	proxy    int
	duration time.Duration
}

// backendHistory is what clients sent to one namespace, what was acknowledged, and what they read. Each client has a
// counter, which it increments by one with a token until that is acknowledged, and an item, which it writes without one.
type backendHistory struct {
	namespace string
	proxies   []datav1.KeyValueClient

	mu      sync.Mutex // guards what follows
	clients [][]sent
	acked   []int // by proxy
	failed  map[fault.Reason]int
}

func newBackendHistory(namespace string, clients int, proxies []datav1.KeyValueClient) *backendHistory {
	return &backendHistory{namespace: namespace, proxies: proxies, clients: make([][]sent, clients), acked: make([]int, len(proxies)), failed: map[fault.Reason]int{}}
}

// counts is how many attempts were acknowledged so far, by proxy, and how many failed, by reason.
func (h *backendHistory) counts() (acked []int, failed int, reasons map[fault.Reason]int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	reasons = map[fault.Reason]int{}
	for r, n := range h.failed {
		reasons[r] = n
		failed += n
	}
	return slices.Clone(h.acked), failed, reasons
}

func (h *backendHistory) add(client int, s sent, began time.Time, err error) (ok bool) {
	s.ok, s.duration = err == nil, time.Since(began)
	if err != nil {
		f := faultgrpc.FromStatus(err)
		s.outcome, s.reason = f.Outcome, f.Reason
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients[client] = append(h.clients[client], s)
	if s.ok {
		h.acked[s.proxy]++
	} else {
		h.failed[s.reason]++
	}
	return s.ok
}

// client runs one client until ctx ends; what it has begun it ends. Calls go to proxies by chance.
func (h *backendHistory) client(ctx context.Context, c int) {
	random := rand.New(rand.NewPCG(uint64(c), 7))
	calls := context.WithoutCancel(ctx)
	proxy := func() int { return random.IntN(len(h.proxies)) }
	pause := func() { time.Sleep(10 * time.Millisecond) } // a pace at which a refusal is not asked for all the time
	for n := 1; ctx.Err() == nil; n++ {
		in := &datav1.IncrementRequest{Namespace: h.namespace, Id: counterOf(c), Delta: 1,
			Token: &datav1.IdempotencyToken{Nonce: binary.BigEndian.AppendUint64(make([]byte, 8), uint64(n)), MadeAt: timestamppb.Now()}}
		for again := false; ; again = true {
			began, p := time.Now(), proxy()
			out, err := h.proxies[p].Increment(calls, in)
			if h.add(c, sent{proxy: p, op: "increment", n: n, again: again, got: out.GetValue()}, began, err) {
				break
			}
			pause()
		}
		began, p := time.Now(), proxy()
		_, err := h.proxies[p].Put(calls, &datav1.PutRequest{Namespace: h.namespace, Id: itemOf(c), Value: fmt.Append(nil, n)})
		if !h.add(c, sent{proxy: p, op: "put", n: n}, began, err) {
			pause()
		}
		began, p = time.Now(), proxy()
		read, err := h.proxies[p].Get(calls, &datav1.GetRequest{Namespace: h.namespace, Id: itemOf(c)})
		var got int64
		if err == nil && read.GetItem() != nil {
			if _, scanErr := fmt.Sscan(string(read.GetItem().GetValue()), &got); scanErr != nil {
				got = -1
			}
		}
		if !h.add(c, sent{proxy: p, op: "get", got: got}, began, err) {
			pause()
		}
	}
}

func counterOf(c int) []byte { return fmt.Appendf(nil, "counter-%d", c) }

func itemOf(c int) []byte { return fmt.Appendf(nil, "item-%d", c) }

// verdict is what the checker found.
type verdict struct {
	attempts, acknowledged, repeated, unknown int
	lost, duplicated, wrong                   []string
}

// check holds what was acknowledged and read against what was sent. A sum below the client's count is an increment that
// was lost, one above it was done twice. A read must be of the last acknowledged write, or of one of unknown outcome,
// which may come at any time after it was sent.
func (h *backendHistory) check() (v verdict) {
	for c, all := range h.clients {
		last, possible := int64(0), []int64{}
		for _, s := range all {
			v.attempts++
			if s.ok {
				v.acknowledged++
			}
			if s.again {
				v.repeated++
			}
			if s.outcome == fault.OutcomeUnknown {
				v.unknown++
			}
			said := func(list *[]string) { *list = append(*list, fmt.Sprintf("client %d: %+v", c, s)) }
			switch {
			case !s.ok && s.op != "get" && s.outcome == "":
				said(&v.wrong) // a write that does not say how it ended
			case s.op == "increment" && s.ok && s.got < int64(s.n):
				said(&v.lost)
			case s.op == "increment" && s.ok && s.got > int64(s.n):
				said(&v.duplicated)
			case s.op == "put" && s.ok:
				last = int64(s.n)
			case s.op == "put" && s.outcome != fault.NotApplied:
				possible = append(possible, int64(s.n))
			case s.op == "get" && s.ok && s.got != last && !slices.Contains(possible, s.got):
				if s.got >= 0 && s.got < last {
					said(&v.lost)
				} else {
					said(&v.wrong)
				}
			}
		}
	}
	return v
}

// TestTheCheckerFindsWhatIsWrong gives the checker histories of a store that misbehaves.
func TestTheCheckerFindsWhatIsWrong(t *testing.T) {
	done := func(op string, n int, got int64) sent { return sent{op: op, n: n, got: got, ok: true} }
	failed := func(op string, n int, o fault.Outcome) sent { return sent{op: op, n: n, outcome: o} }
	for _, tc := range []struct {
		name                    string
		history                 []sent
		lost, duplicated, wrong int
	}{
		{"all is well", []sent{done("increment", 1, 1), done("put", 1, 0), done("get", 0, 1), done("increment", 2, 2)}, 0, 0, 0},
		{"an increment was lost", []sent{done("increment", 1, 1), done("increment", 2, 1)}, 1, 0, 0},
		{"an increment was done twice", []sent{failed("increment", 1, fault.OutcomeUnknown), done("increment", 1, 2)}, 0, 1, 0},
		{"an acknowledged write was lost", []sent{done("put", 1, 0), done("put", 2, 0), done("get", 0, 1)}, 1, 0, 0},
		{"a write of unknown outcome came later", []sent{failed("put", 1, fault.OutcomeUnknown), done("put", 2, 0), done("get", 0, 1)}, 0, 0, 0},
		{"a write that was told as not applied was", []sent{failed("put", 1, fault.NotApplied), done("get", 0, 1)}, 0, 0, 1},
		{"something that nobody wrote", []sent{done("put", 1, 0), done("get", 0, -1)}, 0, 0, 1},
		{"a write that does not say how it ended", []sent{failed("put", 1, "")}, 0, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newBackendHistory("", 1, nil)
			h.clients[0] = tc.history
			if v := h.check(); len(v.lost) != tc.lost || len(v.duplicated) != tc.duplicated || len(v.wrong) != tc.wrong {
				t.Errorf("lost %v, duplicated %v, wrong %v", v.lost, v.duplicated, v.wrong)
			}
		})
	}
}
