package dataapi_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// token is a token of its own at each call.
func (e *env) token() *datav1.IdempotencyToken {
	e.nonces++
	return &datav1.IdempotencyToken{Nonce: bytes.Repeat([]byte{e.nonces}, 16), MadeAt: timestamppb.New(e.clock.now())}
}

var tokenCases = []testCase{
	{"KV-31 duplicate_token_returns_first_result", func(e *env) {
		e.put("id", "", "before")
		in := &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Value: []byte("v"), ReturnPrevious: true, Token: e.token()}
		first := must[*datav1.PutResponse](e.t)(e.client.Put(e.ctx, in))
		e.put("id", "", "later")
		for _, client := range []datav1.KeyValueClient{e.client, e.other} {
			again := must[*datav1.PutResponse](e.t)(client.Put(e.ctx, in))
			if first.GetDuplicate() || !again.GetDuplicate() || !bytes.Equal(again.GetVersion(), first.GetVersion()) || !proto.Equal(again.GetPrevious(), first.GetPrevious()) {
				e.t.Errorf("repeated: %v, at first %v", again, first)
			}
		}
		e.has("id", "", "later")
	}},
	{"KV-31 duplicate_token_of_a_delete_and_of_a_batch", func(e *env) {
		e.put("id", "", "v")
		gone := &datav1.DeleteRequest{Namespace: e.namespace, Id: []byte("id"), Token: e.token()}
		must[*datav1.DeleteResponse](e.t)(e.client.Delete(e.ctx, gone))
		e.put("id", "", "later")
		if again := must[*datav1.DeleteResponse](e.t)(e.other.Delete(e.ctx, gone)); !again.GetDuplicate() || !again.GetExisted() {
			e.t.Errorf("a repeated delete: %v", again)
		}
		e.has("id", "", "later")
		batch := e.writes(3, []byte("v"))
		batch.Token = e.token()
		first := must[*datav1.BatchWriteResponse](e.t)(e.client.BatchWrite(e.ctx, batch))
		again := must[*datav1.BatchWriteResponse](e.t)(e.other.BatchWrite(e.ctx, batch))
		if first.GetDuplicate() || !again.GetDuplicate() || len(again.GetResults()) != 3 {
			e.t.Fatalf("a repeated batch: %v, at first %v", again, first)
		}
		for i, r := range again.GetResults() {
			if !bytes.Equal(r.GetVersion(), first.GetResults()[i].GetVersion()) || len(r.GetVersion()) == 0 {
				e.t.Errorf("write %d has version %x, at first %x", i, r.GetVersion(), first.GetResults()[i].GetVersion())
			}
		}
	}},
	{"KV-32 token_reused_other_body_refused", func(e *env) {
		in := &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Value: []byte("v"), Token: e.token()}
		must[*datav1.PutResponse](e.t)(e.client.Put(e.ctx, in))
		for i, change := range []func(*datav1.PutRequest){
			func(r *datav1.PutRequest) { r.Value = []byte("other") },
			func(r *datav1.PutRequest) { r.Key = []byte("other") },
			func(r *datav1.PutRequest) { r.Metadata = map[string]string{"a": "b"} },
			func(r *datav1.PutRequest) { r.ReturnPrevious = true },
		} {
			other := proto.CloneOf(in)
			change(other)
			_, err := e.other.Put(e.ctx, other)
			if err == nil {
				e.t.Fatalf("change %d was done", i)
			}
			fails(e.t, err, fault.Invalid, fault.TokenReused, fault.NotApplied)
		}
		e.has("id", "", "v")
	}},
	{"KV-33 token_clock_refused", func(e *env) {
		for _, off := range []time.Duration{-11 * time.Minute, 40 * time.Second} {
			token := e.token()
			token.MadeAt = timestamppb.New(e.clock.now().Add(off))
			_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Token: token})
			fails(e.t, err, fault.Invalid, fault.TokenClock, fault.NotApplied)
		}
		for _, token := range []*datav1.IdempotencyToken{{}, {Nonce: make([]byte, 16)}, {Nonce: make([]byte, 15), MadeAt: timestamppb.Now()}} {
			_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Token: token})
			fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		}
		if e.get("id", "") != nil {
			e.t.Error("a refused write was done")
		}
	}},
}

var counterCases = []testCase{
	{"KC-05 exactly_once_with_token_under_retries", func(e *env) {
		const times = 20
		for n := range times {
			in := &datav1.IncrementRequest{Namespace: e.namespace, Id: []byte("id"), Delta: 1, Token: e.token()}
			for try, client := range []datav1.KeyValueClient{e.client, e.other, e.client} {
				out := must[*datav1.IncrementResponse](e.t)(client.Increment(e.ctx, in))
				if out.GetValue() != int64(n+1) || out.GetDuplicate() != (try > 0) {
					e.t.Fatalf("increment %d, try %d: %v", n, try, out)
				}
			}
		}
		e.has("id", "", fmt.Sprint(times))
	}},
}

// transaction is n puts of an id.
func (e *env) transaction(n int) *datav1.TransactRequest {
	return &datav1.TransactRequest{Namespace: e.namespace, Id: []byte("id"), Writes: e.writes(n, []byte("v")).GetWrites()}
}

var transactCases = []testCase{
	{"KX-11 100_ok_101_refused", func(e *env) {
		in := e.transaction(100)
		if out := must[*datav1.TransactResponse](e.t)(e.client.Transact(e.ctx, in)); len(out.GetResults()) != 100 {
			e.t.Errorf("%d results", len(out.GetResults()))
		}
		in.Checks = []*datav1.Check{{Key: key(0), Condition: &datav1.Condition{Is: &datav1.Condition_Present{Present: true}}}}
		_, err := e.client.Transact(e.ctx, in)
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		_, err = e.client.Transact(e.ctx, e.transaction(101))
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		_, err = e.client.Transact(e.ctx, e.transaction(0))
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		if e.get("id", string(key(100))) != nil {
			e.t.Error("a refused transaction was done in part")
		}
	}},
	{"KX-12 other_id_refused", func(e *env) {
		in := e.transaction(2)
		in.GetWrites()[1].GetPut().Id = []byte("other")
		_, err := e.client.Transact(e.ctx, in)
		if f := fails(e.t, err, fault.Invalid, fault.OtherID, fault.NotApplied); len(f.Violations) != 1 || f.Violations[0].Field != "writes[1].put.id" {
			e.t.Errorf("violations %v", f.Violations)
		}
		if e.get("id", string(key(0))) != nil || e.get("other", string(key(1))) != nil {
			e.t.Error("a refused transaction was done in part")
		}
	}},
	{"KX-13 duplicate_token", func(e *env) {
		in := e.transaction(2)
		in.Checks = []*datav1.Check{{Key: key(0), Condition: &datav1.Condition{Is: &datav1.Condition_Absent{Absent: true}}}}
		in.Token = e.token()
		first := must[*datav1.TransactResponse](e.t)(e.client.Transact(e.ctx, in))
		again := must[*datav1.TransactResponse](e.t)(e.other.Transact(e.ctx, in))
		if first.GetDuplicate() || !again.GetDuplicate() || len(again.GetResults()) != 2 || !bytes.Equal(again.GetResults()[1].GetVersion(), first.GetResults()[1].GetVersion()) {
			e.t.Errorf("repeated: %v, at first %v", again, first)
		}
		in.Token = e.token()
		_, err := e.client.Transact(e.ctx, in)
		fails(e.t, err, fault.Conflict, fault.CheckFailed, fault.NotApplied)
	}},
}

// TestATokenSurvivesAProxysRestart repeats a write through a proxy that was started after it (KV-34).
func TestATokenSurvivesAProxysRestart(t *testing.T) {
	for _, st := range stores(t) {
		if offered := offeredBy(t, st.name); st.name == "memory" || !slices.Contains(offered, keyvalue.Idempotency) {
			continue // memory's items do not survive either
		}
		in := &datav1.IncrementRequest{Namespace: "orders", Id: []byte("id"), Delta: 7, Token: &datav1.IdempotencyToken{Nonce: make([]byte, 16), MadeAt: timestamppb.Now()}}
		for life := range 2 {
			t.Run(fmt.Sprintf("%s, life %d of the proxy", st.name, life), func(t *testing.T) {
				p := startProxy(t, "a", nil)
				s := statetest.New(t, 8, p.member("a"))
				s.Backend(st.backend)
				config := statetest.KeyValue("orders", st.backend.GetName(), st.backend.GetType())
				config.Patterns[0].Interfaces = offeredBy(t, st.backend.GetType())
				s.Namespace(config)
				p.apply(t, s)
				out := must[*datav1.IncrementResponse](t)(p.client.Increment(t.Context(), in))
				if out.GetValue() != 7 || out.GetDuplicate() != (life > 0) {
					t.Errorf("answered %v", out)
				}
				(caller{t, t.Context(), p.client, "orders"}).has("id", "", "7")
			})
		}
	}
}
