package conformance

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func modelCases() []Case {
	return in("keyvalue", Case{ID: "KV-27", Name: "random_operations_against_a_model", Run: func(t *testing.T, e *Env) {
		operations := 0
		rapid.Check(t, func(rt *rapid.T) {
			e.Space = NewSpace()
			m := &model{e: e, items: map[string]driver.Item{}}
			for range rapid.IntRange(10, 60).Draw(rt, "operations") {
				m.step(rt)
				operations++
			}
		})
		if operations < 1000 {
			t.Errorf("%d operations, want at least 1,000: -rapid.checks is too low", operations)
		}
	}})
}

// model is what a space ought to hold: plain maps, no locks, no cleverness.
type model struct {
	e     *Env
	items map[string]driver.Item // by id, 0, key: no id drawn here holds a 0
}

var (
	someIDs  = []string{"a", "b", "a1", "{x}"}
	someKeys = []string{"", "1", "2", "10", "\xff", "1\x00"}
)

func at(n driver.Name) string { return string(n.ID) + "\x00" + string(n.Key) }

func (m *model) visible(n driver.Name) *driver.Item {
	it, ok := m.items[at(n)]
	if !ok || driver.Expired(driver.ExpireMillis(it.ExpireAt), m.e.Clock.Now()) {
		return nil
	}
	return &it
}

func (m *model) step(t *rapid.T) {
	n := name(rapid.SampledFrom(someIDs).Draw(t, "id"), rapid.SampledFrom(someKeys).Draw(t, "key"))
	switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
	case what <= 4:
		w := m.draw(t, n)
		done, err := m.e.Write(context.Background(), m.e.Space, w)
		m.wrote(t, w, done, err)
	case what == 5:
		writes := []driver.Write{m.draw(t, n)}
		if other := name(string(n.ID), string(n.Key)+"b"); rapid.Bool().Draw(t, "two") {
			writes = append(writes, m.draw(t, other))
		}
		for i, r := range m.e.BatchWrite(context.Background(), m.e.Space, writes) {
			m.wrote(t, writes[i], r.Written, r.Err)
		}
	case what == 6:
		m.e.Clock.Move(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
	case what == 7:
		m.scan(t, n.ID)
	default:
		it, err := m.e.Get(context.Background(), m.e.Space, n, false)
		if err != nil {
			t.Fatal(show(err))
		}
		m.same(t, it, m.visible(n))
	}
}

func (m *model) draw(t *rapid.T, n driver.Name) driver.Write {
	w := driver.Write{
		Op: driver.Op(rapid.IntRange(0, 2).Draw(t, "op")), Name: n, Value: []byte(rapid.StringN(0, 20, 40).Draw(t, "value")),
		Condition: driver.Condition(rapid.IntRange(0, 3).Draw(t, "condition")), Previous: rapid.Bool().Draw(t, "previous"),
		KeepExpiry: rapid.Bool().Draw(t, "keep"), ContentType: rapid.SampledFrom([]string{"", "text/plain"}).Draw(t, "type"),
	}
	if !m.e.backend.offers("keyvalue.version") {
		w.Condition = driver.Always
	}
	if !m.e.backend.offers("keyvalue.ttl") && w.Op == driver.Touch {
		w.Op = driver.Put
	}
	if w.Condition == driver.IfVersion {
		w.Version = []byte("none of ours....")
		if it := m.visible(n); it != nil && rapid.Bool().Draw(t, "right") {
			w.Version = it.Version
		}
	}
	if rapid.Bool().Draw(t, "expires") && m.e.backend.offers("keyvalue.ttl") {
		w.ExpireAt = m.e.Clock.Now().Add(time.Duration(rapid.IntRange(1, 10_000).Draw(t, "ttl")) * time.Millisecond)
	}
	return w
}

// wrote holds a write's result against the model and then does it there.
func (m *model) wrote(t *rapid.T, w driver.Write, done driver.Written, err error) {
	old := m.visible(w.Name)
	var current []byte
	if old != nil {
		current = old.Version
	}
	if want := fault.From(w.Refusal(current)); want != nil {
		f := fault.From(err)
		if f == nil || f.Code != want.Code || f.Reason != want.Reason || f.Outcome != fault.NotApplied || f.Metadata["version"] != want.Metadata["version"] {
			t.Fatalf("%+v: got %s, want reason %s", w, show(err), want.Reason)
		}
		return
	}
	if err != nil {
		t.Fatalf("%+v: %s", w, show(err))
	}
	if done.Existed != (old != nil) {
		t.Fatalf("%+v: existed %v", w, done.Existed)
	}
	if w.Previous {
		m.same(t, done.Previous, old)
	}
	if w.Op == driver.Delete {
		delete(m.items, at(w.Name))
		return
	}
	it := driver.Item{Name: w.Name, Value: w.Value, ContentType: w.ContentType, Version: done.Version}
	if w.Op == driver.Touch {
		it.Value, it.ContentType = old.Value, old.ContentType
	}
	it.ExpireAt = driver.ExpireTime(driver.ExpireMillis(w.ExpireAt))
	if w.KeepExpiry && old != nil {
		it.ExpireAt = old.ExpireAt
	}
	if !done.ExpireAt.Equal(it.ExpireAt) {
		t.Fatalf("%+v: expires at %v, want %v", w, done.ExpireAt, it.ExpireAt)
	}
	m.items[at(w.Name)] = it
}

func (m *model) same(t *rapid.T, got, want *driver.Item) {
	switch {
	case got == nil && want == nil:
	case got == nil || want == nil:
		t.Fatalf("got %+v, want %+v", got, want)
	case at(got.Name) != at(want.Name), !bytes.Equal(got.Value, want.Value), !bytes.Equal(got.Version, want.Version),
		!got.ExpireAt.Equal(want.ExpireAt), got.ContentType != want.ContentType:
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func (m *model) scan(t *rapid.T, id []byte) {
	sc, ok := m.e.inst.(driver.Scanner)
	if !ok {
		return
	}
	r := driver.Range{ID: id, Limit: rapid.IntRange(1, 5).Draw(t, "limit"), MaxBytes: 1 << 20, Reverse: rapid.Bool().Draw(t, "reverse")}
	if rapid.Bool().Draw(t, "bounded") {
		r.Start = []byte(rapid.SampledFrom(someKeys).Draw(t, "start"))
		r.End = []byte(rapid.SampledFrom(someKeys).Draw(t, "end"))
	}
	var want []driver.Item
	for _, it := range m.items {
		if m.visible(it.Name) != nil && bytes.Equal(it.ID, id) && bytes.Compare(it.Key, r.Start) >= 0 && (r.End == nil || bytes.Compare(it.Key, r.End) < 0) {
			want = append(want, it)
		}
	}
	slices.SortFunc(want, func(a, b driver.Item) int {
		if r.Reverse {
			a, b = b, a
		}
		return bytes.Compare(a.Key, b.Key)
	})
	got, more, err := sc.Scan(context.Background(), m.e.Space, r)
	if err != nil {
		t.Fatal(show(err))
	}
	if len(got) != min(len(want), r.Limit) || more != (len(want) > r.Limit) {
		t.Fatalf("%+v: got %q, more %v; want %q", r, keysOf(got), more, keysOf(want))
	}
	for n := range got {
		m.same(t, &got[n], &want[n])
	}
}

// call is one operation of the history: what was asked and what came back.
type call struct {
	kind             string // get, put, cas, delete
	value, condition string
	ok               bool
	got, version     string // of the item read, or written
}

// register is one key: an item with a version, or nothing.
type register struct{ value, version string }

var registers = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, _, output any) (bool, any) {
		s, c := state.(register), output.(call)
		switch c.kind {
		case "get":
			return c.got == s.value && c.version == s.version, s
		case "delete":
			return c.ok == (s.version != ""), register{}
		case "cas":
			if c.ok != (s.version != "" && s.version == c.condition) {
				return false, s
			}
			if !c.ok {
				return true, s
			}
		}
		return true, register{c.value, c.version}
	},
}

// linearizable has writers and readers work on one key, through all instances, and checks that their history could have
// happened one call after the other.
func linearizable(t *testing.T, e *Env) {
	stores := []driver.KeyValue{e.KeyValue}
	if e.backend.Shared {
		stores = append(stores, e.open().(driver.KeyValue))
	}
	var mu sync.Mutex // guards history
	var history []porcupine.Operation
	var wait sync.WaitGroup
	begin := time.Now()
	for client := range 6 {
		wait.Go(func() {
			kv, random, seen := stores[client%len(stores)], rand.New(rand.NewPCG(1, uint64(client))), ""
			for n := range 60 {
				op := porcupine.Operation{ClientId: client, Call: int64(time.Since(begin))}
				c, err := perform(t.Context(), kv, e.Space, random.IntN(10), fmt.Sprintf("%d-%d", client, n), seen)
				op.Return, op.Output = int64(time.Since(begin)), c
				if err != nil {
					t.Errorf("%s: %s", c.kind, show(err))
					return
				}
				seen = c.version
				mu.Lock()
				history = append(history, op)
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	if got := porcupine.CheckOperationsTimeout(registers, history, time.Minute); got != porcupine.Ok {
		var text strings.Builder
		for _, op := range history {
			fmt.Fprintf(&text, "\n%d [%d, %d] %+v", op.ClientId, op.Call, op.Return, op.Output)
		}
		t.Errorf("the history of %d calls is %s:%s", len(history), got, text.String())
	}
}

// perform does one call: four in ten are reads.
func perform(ctx context.Context, kv driver.KeyValue, space driver.Space, kind int, value, seen string) (call, error) {
	switch {
	case kind < 4:
		it, err := kv.Get(ctx, space, name("a", "k"), false)
		if it == nil {
			return call{kind: "get"}, err
		}
		return call{kind: "get", got: string(it.Value), version: string(it.Version)}, err
	case kind < 6:
		done, err := kv.Write(ctx, space, put("a", "k", value))
		return call{kind: "put", ok: true, value: value, version: string(done.Version)}, err
	case kind < 9:
		done, err := kv.Write(ctx, space, onlyIf(put("a", "k", value), driver.IfVersion, []byte(seen)))
		if fault.Is(err, fault.VersionMismatch) {
			return call{kind: "cas", condition: seen}, nil
		}
		return call{kind: "cas", ok: true, value: value, condition: seen, version: string(done.Version)}, err
	default:
		done, err := kv.Write(ctx, space, remove("a", "k"))
		return call{kind: "delete", ok: done.Existed}, err
	}
}
