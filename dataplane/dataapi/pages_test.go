package dataapi_test

import (
	"bytes"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

func (e *env) writes(n int, value []byte) *datav1.BatchWriteRequest {
	in := &datav1.BatchWriteRequest{Namespace: e.namespace}
	for i := range n {
		in.Writes = append(in.Writes, &datav1.Write{Op: &datav1.Write_Put{Put: &datav1.PutOp{Id: []byte("id"), Key: key(i), Value: value}}})
	}
	return in
}

func key(i int) []byte { return fmt.Appendf(nil, "key-%05d", i) }

func names(n int) (out []*datav1.Name) {
	for i := range n {
		out = append(out, &datav1.Name{Id: []byte("id"), Key: key(i)})
	}
	return out
}

// fill writes n items of id.
func (e *env) fill(n int, value []byte) {
	e.t.Helper()
	out := must[*datav1.BatchWriteResponse](e.t)(e.client.BatchWrite(e.ctx, e.writes(n, value)))
	for i, r := range out.GetResults() {
		if r.GetStatus() != nil {
			e.t.Fatalf("write %d: %v", i, r.GetStatus())
		}
	}
}

// scanAll follows pages to the end.
func (e *env) scanAll(in *datav1.ScanRequest) (keys []string, pages int) {
	e.t.Helper()
	in.Namespace = e.namespace
	for {
		out := must[*datav1.ScanResponse](e.t)(e.client.Scan(e.ctx, in))
		pages++
		for _, item := range out.GetItems() {
			keys = append(keys, string(item.GetKey()))
		}
		if len(out.GetNextPageToken()) == 0 {
			return keys, pages
		}
		in.PageToken = out.GetNextPageToken()
	}
}

var batchCases = []testCase{
	{"KB-07 batch_duplicate_key_refused", func(e *env) {
		in := e.writes(2, nil)
		in.Writes = append(in.Writes, &datav1.Write{Op: &datav1.Write_Delete{Delete: &datav1.DeleteOp{Id: []byte("id"), Key: key(0)}}})
		_, err := e.client.BatchWrite(e.ctx, in)
		if f := fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied); len(f.Violations) != 1 || f.Violations[0].Field != "writes[2]" {
			e.t.Errorf("violations %v", f.Violations)
		}
		_, err = e.client.BatchGet(e.ctx, &datav1.BatchGetRequest{Namespace: e.namespace, Names: append(names(2), names(1)...)})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		if e.get("id", string(key(0))) != nil {
			e.t.Error("a refused batch was done in part")
		}
	}},
	{"KB-08 batch_1000_ok_1001_refused", func(e *env) {
		e.fill(1000, []byte("v"))
		out := must[*datav1.BatchGetResponse](e.t)(e.client.BatchGet(e.ctx, &datav1.BatchGetRequest{Namespace: e.namespace, Names: names(1000)}))
		if len(out.GetResults()) != 1000 || len(out.GetUnprocessed()) != 0 || string(out.GetResults()[999].GetItem().GetValue()) != "v" {
			e.t.Errorf("%d results, %d unprocessed", len(out.GetResults()), len(out.GetUnprocessed()))
		}
		_, err := e.client.BatchWrite(e.ctx, e.writes(1001, nil))
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		_, err = e.client.BatchGet(e.ctx, &datav1.BatchGetRequest{Namespace: e.namespace, Names: names(1001)})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		_, err = e.client.BatchWrite(e.ctx, &datav1.BatchWriteRequest{Namespace: e.namespace})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
	}},
	{"KB-09 batch_answer_over_4MiB_unprocessed", func(e *env) {
		const n = 100
		for from := 0; from < n; from += 50 {
			in := e.writes(from+50, make([]byte, testMaxValue))
			in.Writes = in.Writes[from:]
			must[*datav1.BatchWriteResponse](e.t)(e.client.BatchWrite(e.ctx, in))
		}
		ask := make([]int, n)
		for i := range ask {
			ask[i] = i
		}
		got, calls := 0, 0
		for len(ask) > 0 {
			in := &datav1.BatchGetRequest{Namespace: e.namespace}
			for _, i := range ask {
				in.Names = append(in.Names, &datav1.Name{Id: []byte("id"), Key: key(i)})
			}
			out := must[*datav1.BatchGetResponse](e.t)(e.client.BatchGet(e.ctx, in))
			if size := proto.Size(out); size > 4<<20 {
				e.t.Fatalf("an answer of %d bytes", size)
			}
			var again []int
			for _, place := range out.GetUnprocessed() {
				again = append(again, ask[place])
			}
			for i, r := range out.GetResults()[:len(ask)-len(again)] {
				if len(r.GetItem().GetValue()) != testMaxValue || !bytes.Equal(r.GetItem().GetKey(), key(ask[i])) {
					e.t.Fatalf("result %d is %q of %d bytes", i, r.GetItem().GetKey(), len(r.GetItem().GetValue()))
				}
				got++
			}
			ask, calls = again, calls+1
		}
		if got != n || calls != 2 {
			e.t.Errorf("%d items in %d calls, want %d in 2", got, calls, n)
		}
	}},
	{"KB-10 batch_order_kept", func(e *env) {
		e.fill(10, []byte("v"))
		in := names(12)
		for i, j := 0, len(in)-1; i < j; i, j = i+1, j-1 {
			in[i], in[j] = in[j], in[i]
		}
		out := must[*datav1.BatchGetResponse](e.t)(e.client.BatchGet(e.ctx, &datav1.BatchGetRequest{Namespace: e.namespace, Names: in}))
		for i, r := range out.GetResults() {
			if present := i >= 2; (r.GetItem() != nil) != present || present && !bytes.Equal(r.GetItem().GetKey(), in[i].GetKey()) {
				e.t.Errorf("result %d is %v", i, r.GetItem())
			}
		}
	}},
	{"KB-04 batch_partial_failure_per_entry", func(e *env) {
		e.put("id", string(key(1)), "there")
		in := e.writes(3, []byte("new"))
		in.Writes[1].GetPut().Condition = &datav1.Condition{Is: &datav1.Condition_Absent{Absent: true}}
		out := must[*datav1.BatchWriteResponse](e.t)(e.client.BatchWrite(e.ctx, in))
		for i, r := range out.GetResults() {
			if failed := r.GetStatus() != nil; failed != (i == 1) {
				e.t.Errorf("write %d: %v", i, r.GetStatus())
			}
		}
		e.has("id", string(key(1)), "there")
		e.has("id", string(key(2)), "new")
	}},
}

var scanCases = []testCase{
	{"KS-03 page_size_and_token", func(e *env) {
		e.fill(25, []byte("v"))
		for _, reverse := range []bool{false, true} {
			keys, pages := e.scanAll(&datav1.ScanRequest{Id: []byte("id"), Limit: 10, Reverse: reverse})
			if len(keys) != 25 || pages != 3 {
				e.t.Fatalf("%d keys on %d pages, want 25 on 3", len(keys), pages)
			}
			for i, k := range keys {
				want := i
				if reverse {
					want = 24 - i
				}
				if k != string(key(want)) {
					e.t.Fatalf("place %d has %q", i, k)
				}
			}
		}
	}},
	{"KS-01 prefix_simple", func(e *env) {
		for _, k := range []string{"", "a", "a\x00", "a\xff", "a\xff\xff", "b", "\xff", "\xff\xff", "\xff\xffx"} {
			e.put("id", k, "v")
		}
		for _, c := range []struct{ prefix, start, end, want string }{
			{"", "", "", `["" "a" "a\x00" "a\xff" "a\xff\xff" "b" "\xff" "\xff\xff" "\xff\xffx"]`},
			{"a", "", "", `["a" "a\x00" "a\xff" "a\xff\xff"]`},
			{"\xff\xff", "", "", `["\xff\xff" "\xff\xffx"]`},
			{"", "a\xff", "b", `["a\xff" "a\xff\xff"]`},
			{"a", "a\x00", "a\xff", `["a\x00"]`},
			{"a", "b", "", `[]`},
			{"b", "", "a", `[]`},
		} {
			for _, limit := range []uint32{0, 1} {
				keys, _ := e.scanAll(&datav1.ScanRequest{Id: []byte("id"), Prefix: []byte(c.prefix), Start: []byte(c.start), End: []byte(c.end), Limit: limit})
				if got := fmt.Sprintf("%q", keys); got != c.want {
					e.t.Errorf("prefix %q start %q end %q, pages of %d: %s, want %s", c.prefix, c.start, c.end, limit, got, c.want)
				}
			}
		}
	}},
	{"KS-17 keys_only", func(e *env) {
		e.fill(3, []byte("v"))
		out := must[*datav1.ScanResponse](e.t)(e.client.Scan(e.ctx, &datav1.ScanRequest{Namespace: e.namespace, Id: []byte("id"), KeysOnly: true}))
		if len(out.GetItems()) != 3 || len(out.GetItems()[0].GetValue()) != 0 {
			e.t.Errorf("got %v", out)
		}
	}},
	{"KS-19 max_bytes", func(e *env) {
		e.fill(20, make([]byte, 10<<10))
		out := must[*datav1.ScanResponse](e.t)(e.client.Scan(e.ctx, &datav1.ScanRequest{Namespace: e.namespace, Id: []byte("id"), MaxBytes: 50 << 10}))
		if n := len(out.GetItems()); n < 1 || n > 5 || len(out.GetNextPageToken()) == 0 {
			e.t.Errorf("%d items of 10 KiB in a page of 50 KiB", n)
		}
		if keys, _ := e.scanAll(&datav1.ScanRequest{Id: []byte("id"), MaxBytes: 50 << 10}); len(keys) != 20 {
			e.t.Errorf("%d keys, want 20", len(keys))
		}
		_, err := e.client.Scan(e.ctx, &datav1.ScanRequest{Namespace: e.namespace, Id: []byte("id"), MaxBytes: 3<<20 + 1, Limit: 10001})
		if f := fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied); len(f.Violations) != 2 {
			e.t.Errorf("violations %v", f.Violations)
		}
	}},
	{"KS-20 one_item_larger_than_page_still_returned", func(e *env) {
		e.fill(2, make([]byte, 10<<10))
		if keys, pages := e.scanAll(&datav1.ScanRequest{Id: []byte("id"), MaxBytes: 1}); len(keys) != 2 || pages != 2 {
			e.t.Errorf("%d keys on %d pages", len(keys), pages)
		}
	}},
	{"KS-22 forged_token_refused", func(e *env) {
		e.fill(5, nil)
		in := &datav1.ScanRequest{Namespace: e.namespace, Id: []byte("id"), Limit: 2}
		token := must[*datav1.ScanResponse](e.t)(e.client.Scan(e.ctx, in)).GetNextPageToken()
		for i := range token {
			in.PageToken = bytes.Clone(token)
			in.PageToken[i] ^= 1
			_, err := e.client.Scan(e.ctx, in)
			fails(e.t, err, fault.Invalid, fault.PageToken, fault.NotApplied)
		}
		in.PageToken = token[:10]
		_, err := e.client.Scan(e.ctx, in)
		fails(e.t, err, fault.Invalid, fault.PageToken, fault.NotApplied)
		in.PageToken, in.Reverse = token, true
		_, err = e.client.Scan(e.ctx, in)
		fails(e.t, err, fault.Invalid, fault.PageToken, fault.NotApplied)
		_, err = e.client.ListIds(e.ctx, &datav1.ListIdsRequest{Namespace: e.namespace, PageToken: token})
		fails(e.t, err, fault.Invalid, fault.PageToken, fault.NotApplied)
		_, err = e.client.DeleteRange(e.ctx, &datav1.DeleteRangeRequest{Namespace: e.namespace, Id: []byte("id"), All: true, PageToken: token})
		fails(e.t, err, fault.Invalid, fault.PageToken, fault.NotApplied)
	}},
	{"KS-23 token_of_other_namespace_refused", func(e *env) {
		e.fill(5, nil)
		in := &datav1.ScanRequest{Namespace: e.namespace, Id: []byte("id"), Limit: 2}
		in.PageToken = must[*datav1.ScanResponse](e.t)(e.client.Scan(e.ctx, in)).GetNextPageToken()
		in.Namespace = "case-000"
		_, err := e.client.Scan(e.ctx, in)
		fails(e.t, err, fault.Invalid, fault.PageToken, fault.NotApplied)
	}},
	{"a_token_is_good_on_every_owner", func(e *env) {
		e.fill(5, nil)
		in := &datav1.ScanRequest{Namespace: e.namespace, Id: []byte("id"), Limit: 2}
		in.PageToken = must[*datav1.ScanResponse](e.t)(e.client.Scan(e.ctx, in)).GetNextPageToken()
		if out := must[*datav1.ScanResponse](e.t)(e.other.Scan(e.ctx, in)); len(out.GetItems()) != 2 || !bytes.Equal(out.GetItems()[0].GetKey(), key(2)) {
			e.t.Errorf("the other owner goes on with %v", out.GetItems())
		}
	}},
	{"KS-08 list_ids_shows_own_namespace_only", func(e *env) {
		want := map[string]bool{}
		for i := range 25 {
			id := fmt.Sprintf("id-%d", i)
			e.put(id, "", "v")
			want[id] = true
		}
		in := &datav1.ListIdsRequest{Namespace: e.namespace, Limit: 10}
		seen := map[string]bool{}
		for {
			out := must[*datav1.ListIdsResponse](e.t)(e.client.ListIds(e.ctx, in))
			for _, id := range out.GetIds() {
				seen[string(id)] = true
			}
			if in.PageToken = out.GetNextPageToken(); len(in.PageToken) == 0 {
				break
			}
		}
		if fmt.Sprint(seen) != fmt.Sprint(want) {
			e.t.Errorf("ids %v, want %v", seen, want)
		}
	}},
	{"KS-09 delete_range_prefix", func(e *env) {
		for _, k := range []string{"", "a", "a1", "a2", "b"} {
			e.put("id", k, "v")
			e.put("neighbour", k, "v")
		}
		out := must[*datav1.DeleteRangeResponse](e.t)(e.client.DeleteRange(e.ctx, &datav1.DeleteRangeRequest{Namespace: e.namespace, Id: []byte("id"), Prefix: []byte("a")}))
		if out.GetDeleted() != 3 || len(out.GetNextPageToken()) != 0 {
			e.t.Errorf("deleted %v", out)
		}
		if keys, _ := e.scanAll(&datav1.ScanRequest{Id: []byte("id")}); fmt.Sprintf("%q", keys) != `["" "b"]` {
			e.t.Errorf("left %q", keys)
		}
		if keys, _ := e.scanAll(&datav1.ScanRequest{Id: []byte("neighbour")}); len(keys) != 5 {
			e.t.Errorf("of the neighbour %d are left, want 5", len(keys))
		}
	}},
	{"KS-11 delete_range_empty_prefix_needs_confirm", func(e *env) {
		e.fill(1000, nil)
		in := &datav1.DeleteRangeRequest{Namespace: e.namespace, Id: []byte("id")}
		_, err := e.client.DeleteRange(e.ctx, in)
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		in.All = true
		var deleted uint64
		for {
			out := must[*datav1.DeleteRangeResponse](e.t)(e.client.DeleteRange(e.ctx, in))
			deleted += out.GetDeleted()
			if in.PageToken = out.GetNextPageToken(); len(in.PageToken) == 0 {
				break
			}
		}
		if keys, _ := e.scanAll(&datav1.ScanRequest{Id: []byte("id")}); deleted != 1000 || len(keys) != 0 {
			e.t.Errorf("deleted %d, %d are left", deleted, len(keys))
		}
	}},
	{"KS-25 token_expired", func(e *env) {
		e.fill(5, nil)
		in := &datav1.ScanRequest{Namespace: e.namespace, Id: []byte("id"), Limit: 2}
		in.PageToken = must[*datav1.ScanResponse](e.t)(e.client.Scan(e.ctx, in)).GetNextPageToken()
		e.clock.move(25 * time.Hour)
		defer e.clock.move(-25 * time.Hour)
		_, err := e.client.Scan(e.ctx, in)
		fails(e.t, err, fault.OutOfRange, fault.PageTokenExpired, fault.NotApplied)
	}},
}
