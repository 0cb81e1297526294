package dataapi_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/builtin"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// env is what a case has: two proxies that own all partitions, and a namespace of its own.
type env struct {
	caller
	other  datav1.KeyValueClient // through the second proxy
	proxy  *proxy
	clock  *clock
	store  store
	config *configv1.NamespaceConfig
	nonces byte // of tokens made
}

const testMaxValue = 64 << 10

// testCase is a case of the conformance suite that is decided above the drivers.
type testCase struct {
	name string
	run  func(e *env)
}

// TestConformance runs the cases that the API decides, by their names in the conformance suite, against every driver.
func TestConformance(t *testing.T) {
	for _, st := range stores(t) {
		t.Run(st.name, func(t *testing.T) {
			c := &clock{}
			a, b := startProxy(t, "a", c), startProxy(t, "b", c)
			s := statetest.New(t, 16, a.member("a"), b.member("b"))
			s.Backend(st.backend)
			var all []testCase
			for _, cases := range [][]testCase{nameCases, valueCases, callCases, batchCases, scanCases} {
				all = append(all, cases...)
			}
			offered := offeredBy(t, st.backend.GetType())
			if st.name == "s3" {
				// Nobody without a key may put objects in parts, and routes have no keys yet; the driver's own run has.
				offered = slices.DeleteFunc(slices.Clone(offered), func(name string) bool { return name == keyvalue.Large })
			}
			for _, of := range []struct {
				needs []string
				cases []testCase
			}{
				{[]string{keyvalue.TTL}, expiryCases}, {[]string{keyvalue.Idempotency}, tokenCases},
				{[]string{keyvalue.Counter, keyvalue.Idempotency}, counterCases}, {[]string{keyvalue.Transact}, transactCases},
				{[]string{keyvalue.Watch}, watchCases}, {[]string{keyvalue.Large}, largeCases},
			} {
				if !slices.ContainsFunc(of.needs, func(name string) bool { return !slices.Contains(offered, name) }) {
					all = append(all, of.cases...)
				}
			}
			configs := make([]*configv1.NamespaceConfig, len(all))
			for i := range all {
				configs[i] = statetest.KeyValue(fmt.Sprintf("case-%03d", i), st.backend.GetName(), st.backend.GetType())
				configs[i].Patterns[0].MaxValueBytes = testMaxValue
				configs[i].Patterns[0].Interfaces = offered
				s.Namespace(configs[i])
				without := statetest.KeyValue(fmt.Sprintf("bare-%03d", i), st.backend.GetName(), st.backend.GetType())
				without.Patterns[0].Interfaces = []string{"keyvalue"}
				without.Patterns[0].Consistency = configv1.Consistency_CONSISTENCY_EVENTUAL
				s.Namespace(without)
			}
			state := s.State()
			for _, p := range []*proxy{a, b} {
				if refused := p.Apply(t.Context(), state); refused != nil {
					t.Fatal(refused)
				}
			}
			for i, tc := range all {
				t.Run(tc.name, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					tc.run(&env{
						caller: caller{t: t, ctx: ctx, client: a.client, namespace: configs[i].GetNamespace()},
						other:  b.client, proxy: a, clock: c, store: st, config: configs[i],
					})
				})
			}
		})
	}
}

// offeredBy lists the interfaces of a backend type's driver.
func offeredBy(t testing.TB, backendType string) []string {
	t.Helper()
	for _, d := range builtin.Drivers() {
		if d.Type() == backendType {
			return d.Interfaces()
		}
	}
	t.Fatalf("no driver for %s", backendType)
	return nil
}

// bare is the case's namespace that asked for nothing but keyvalue, with eventual consistency.
func (e *env) bare() string { return strings.Replace(e.namespace, "case", "bare", 1) }

var nameCases = []testCase{
	{"KV-08 delete_absent_is_ok", func(e *env) {
		out := must[*datav1.DeleteResponse](e.t)(e.client.Delete(e.ctx, &datav1.DeleteRequest{Namespace: e.namespace, Id: []byte("x")}))
		if out.GetExisted() {
			e.t.Error("an absent item existed")
		}
	}},
	{"KV-10 id_1_byte", func(e *env) { e.put("\x00", "", "v"); e.has("\x00", "", "v") }},
	{"KV-11 id_and_key_1024_bytes", func(e *env) {
		id, key := strings.Repeat("\xff", 1024), strings.Repeat("\x00", 1024)
		e.put(id, key, "v")
		e.has(id, key, "v")
	}},
	{"KV-12 id_or_key_1025_rejected", func(e *env) {
		long := bytes.Repeat([]byte("x"), 1025)
		_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: long, Key: long})
		f := fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		if len(f.Violations) != 2 || f.Violations[0].Field != "id" || f.Violations[1].Field != "key" {
			e.t.Errorf("violations %v, want both fields at once", f.Violations)
		}
		_, err = e.client.Get(e.ctx, &datav1.GetRequest{Namespace: e.namespace, Id: long})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
	}},
	{"KV-13 id_empty_rejected_key_empty_ok", func(e *env) {
		_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		e.put("id", "", "v")
		e.has("id", "", "v")
	}},
	{"KV-14 key_every_byte_value", func(e *env) {
		for b := range 256 {
			e.put("id", string([]byte{byte(b)}), fmt.Sprint(b))
		}
		for b := range 256 {
			e.has("id", string([]byte{byte(b)}), fmt.Sprint(b))
		}
	}},
	{"KV-15 key_unicode_normalisation_is_not_applied", func(e *env) {
		e.put("id", "\u00e9", "composed")
		e.put("id", "e\u0301", "decomposed")
		e.has("id", "\u00e9", "composed")
		e.has("id", "e\u0301", "decomposed")
	}},
	{"KV-16 key_with_separators_and_wildcards", func(e *env) {
		odd := []string{"||", ":", "/", "*", "?", "[", "%", "_", "\\", "..", "a||b", "'; --"}
		for _, k := range odd {
			e.put(k, k, k)
		}
		for _, k := range odd {
			e.has(k, k, k)
		}
		if got := e.get("a", "b"); got != nil {
			e.t.Errorf("a separator inside a name split it: %v", got)
		}
	}},
}

var valueCases = []testCase{
	{"KV-17 value_at_limit", func(e *env) {
		value := strings.Repeat("v", testMaxValue)
		e.put("id", "", value)
		e.has("id", "", value)
	}},
	{"KV-18 value_over_limit_rejected_before_backend", func(e *env) {
		_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Value: make([]byte, testMaxValue+1)})
		fails(e.t, err, fault.Invalid, fault.TooLarge, fault.NotApplied)
		_, err = e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Value: make([]byte, 4<<20)})
		fails(e.t, err, fault.Invalid, fault.TooLarge, fault.NotApplied)
		if got := e.get("id", ""); got != nil {
			e.t.Errorf("the refused value is there")
		}
	}},
	{"KV-19 metadata_roundtrip", func(e *env) {
		want := map[string]string{"a": "", "": "b", "unicode": "é\x00"}
		must[*datav1.PutResponse](e.t)(e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Metadata: want}))
		if got := e.get("id", "").GetMetadata(); fmt.Sprint(got) != fmt.Sprint(want) {
			e.t.Errorf("metadata %q, want %q", got, want)
		}
		_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Metadata: map[string]string{"a": strings.Repeat("x", 2048)}})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
	}},
	{"KV-20 content_type_roundtrip", func(e *env) {
		must[*datav1.PutResponse](e.t)(e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), ContentType: "application/json"}))
		if got := e.get("id", "").GetContentType(); got != "application/json" {
			e.t.Errorf("content type %q", got)
		}
		_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), ContentType: strings.Repeat("x", 256)})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
	}},
	{"KV-21 modified_at_monotone_per_key", func(e *env) {
		var last time.Time
		for range 20 {
			e.put("id", "", "v")
			at := e.get("id", "").GetModifiedAt().AsTime()
			if at.Before(last) || at.IsZero() {
				e.t.Fatalf("modified at %v after %v", at, last)
			}
			last = at
		}
	}},
	{"KV-22 read_own_write_same_proxy", func(e *env) { e.put("id", "", "v"); e.has("id", "", "v") }},
	{"KV-23 read_own_write_other_proxy_with_commit_token", func(e *env) {
		for i := range 50 {
			value := fmt.Sprint(i)
			done := e.put("id", "", value)
			out := must[*datav1.GetResponse](e.t)(e.other.Get(e.ctx, &datav1.GetRequest{
				Namespace: e.namespace, Id: []byte("id"), Consistency: datav1.Consistency_CONSISTENCY_READ_YOUR_WRITES, AtLeast: done.GetCommitToken(),
			}))
			if got := string(out.GetItem().GetValue()); got != value {
				e.t.Fatalf("the other proxy has %q, want %q", got, value)
			}
		}
	}},
	{"KV-24 stronger_consistency_refused", func(e *env) {
		_, err := e.client.Get(e.ctx, &datav1.GetRequest{Namespace: e.bare(), Id: []byte("id"), Consistency: datav1.Consistency_CONSISTENCY_STRONG})
		fails(e.t, err, fault.FailedPrecondition, fault.Consistency, fault.NotApplied)
		_, err = e.client.Get(e.ctx, &datav1.GetRequest{Namespace: e.namespace, Id: []byte("id"), Consistency: 9})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		must[*datav1.GetResponse](e.t)(e.client.Get(e.ctx, &datav1.GetRequest{Namespace: e.namespace, Id: []byte("id"), Consistency: datav1.Consistency_CONSISTENCY_EVENTUAL}))
	}},
	{"KV-25 return_previous", func(e *env) {
		e.put("id", "", "first")
		out := must[*datav1.PutResponse](e.t)(e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Value: []byte("second"), ReturnPrevious: true}))
		if got := string(out.GetPrevious().GetValue()); got != "first" {
			e.t.Errorf("previous %q, want first", got)
		}
		gone := must[*datav1.DeleteResponse](e.t)(e.client.Delete(e.ctx, &datav1.DeleteRequest{Namespace: e.namespace, Id: []byte("id"), ReturnPrevious: true}))
		if got := string(gone.GetPrevious().GetValue()); got != "second" || !gone.GetExisted() {
			e.t.Errorf("previous %q, existed %v; want second", got, gone.GetExisted())
		}
	}},
	{"KV-26 head_only", func(e *env) {
		done := e.put("id", "", "value")
		out := must[*datav1.GetResponse](e.t)(e.client.Get(e.ctx, &datav1.GetRequest{Namespace: e.namespace, Id: []byte("id"), HeadOnly: true}))
		if len(out.GetItem().GetValue()) != 0 || !bytes.Equal(out.GetItem().GetVersion(), done.GetVersion()) {
			e.t.Errorf("head %v, want the version and no value", out.GetItem())
		}
	}},
}

var callCases = []testCase{
	{"KV-31..33 tokens_are_refused_where_not_offered", func(e *env) {
		token := &datav1.IdempotencyToken{Nonce: make([]byte, 16), MadeAt: timestamppb.Now()}
		_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.bare(), Id: []byte("id"), Token: token})
		if f := fails(e.t, err, fault.FailedPrecondition, fault.InterfaceMissing, fault.NotApplied); f.Metadata["interface"] != "keyvalue.idempotency" {
			e.t.Errorf("interface %q", f.Metadata["interface"])
		}
		if (caller{e.t, e.ctx, e.client, e.bare()}).get("id", "") != nil {
			e.t.Error("the refused write was done")
		}
	}},
	{"a_condition_or_expiry_of_an_unknown_kind_is_refused", func(e *env) {
		e.put("id", "", "v")
		second := func(_ any, err error) error { return err }
		unknown := protowire.AppendVarint(protowire.AppendTag(nil, 100, protowire.VarintType), 1)
		condition, expiry := &datav1.Condition{}, &datav1.Expiry{}
		condition.ProtoReflect().SetUnknown(unknown)
		expiry.ProtoReflect().SetUnknown(unknown)
		for i, err := range []error{
			second(e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Condition: condition})),
			second(e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Expiry: expiry})),
			second(e.client.Delete(e.ctx, &datav1.DeleteRequest{Namespace: e.namespace, Id: []byte("id"), Condition: &datav1.Condition{}})),
			second(e.client.Touch(e.ctx, &datav1.TouchRequest{Namespace: e.namespace, Id: []byte("id"), Expiry: &datav1.Expiry{}})),
		} {
			if err == nil {
				e.t.Errorf("%d was done", i)
				continue
			}
			fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		}
		if got := e.get("id", ""); string(got.GetValue()) != "v" {
			e.t.Errorf("the item is %v", got)
		}
	}},
	{"every_interface_that_is_not_offered_is_named", func(e *env) {
		id := []byte("id")
		watch := func() error {
			s, err := e.client.Watch(e.ctx, &datav1.WatchRequest{Namespace: e.bare(), Id: id})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}
		read := func() error {
			s, err := e.client.ReadValue(e.ctx, &datav1.ReadValueRequest{Namespace: e.bare(), Id: id})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}
		write := func() error {
			s, err := e.client.WriteValue(e.ctx)
			if err == nil {
				_ = s.Send(&datav1.WriteValueRequest{Put: &datav1.PutRequest{Namespace: e.bare(), Id: id}})
				_, err = s.CloseAndRecv()
			}
			return err
		}
		second := func(_ any, err error) error { return err }
		for want, err := range map[string]error{
			"keyvalue.counter":  second(e.client.Increment(e.ctx, &datav1.IncrementRequest{Namespace: e.bare(), Id: id})),
			"keyvalue.transact": second(e.client.Transact(e.ctx, &datav1.TransactRequest{Namespace: e.bare(), Id: id})),
			"keyvalue.watch":    watch(),
			"keyvalue.large":    read(),
			"keyvalue.scan":     second(e.client.Scan(e.ctx, &datav1.ScanRequest{Namespace: e.bare(), Id: id})),
			"keyvalue.list":     second(e.client.ListIds(e.ctx, &datav1.ListIdsRequest{Namespace: e.bare()})),
			"keyvalue.version": second(e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.bare(), Id: id,
				Condition: &datav1.Condition{Is: &datav1.Condition_Absent{Absent: true}}})),
		} {
			if f := fails(e.t, err, fault.FailedPrecondition, fault.InterfaceMissing, fault.NotApplied); f.Metadata["interface"] != want {
				e.t.Errorf("interface %q, want %q", f.Metadata["interface"], want)
			}
		}
		fails(e.t, write(), fault.FailedPrecondition, fault.InterfaceMissing, fault.NotApplied)
		_, err := e.client.DeleteRange(e.ctx, &datav1.DeleteRangeRequest{Namespace: e.bare(), Id: id, All: true})
		fails(e.t, err, fault.FailedPrecondition, fault.InterfaceMissing, fault.NotApplied)
	}},
	{"KT-09 interface_missing_when_not_offered", func(e *env) {
		for _, expiry := range []*datav1.Expiry{{Is: &datav1.Expiry_Ttl{Ttl: durationpb.New(time.Minute)}}, {Is: &datav1.Expiry_Never{Never: true}}} {
			_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.bare(), Id: []byte("id"), Expiry: expiry})
			if f := fails(e.t, err, fault.FailedPrecondition, fault.InterfaceMissing, fault.NotApplied); f.Metadata["interface"] != "keyvalue.ttl" {
				e.t.Errorf("interface %q", f.Metadata["interface"])
			}
		}
		_, err := e.client.Touch(e.ctx, &datav1.TouchRequest{Namespace: e.bare(), Id: []byte("id"), Expiry: &datav1.Expiry{Is: &datav1.Expiry_Never{Never: true}}})
		fails(e.t, err, fault.FailedPrecondition, fault.InterfaceMissing, fault.NotApplied)
	}},
	{"KS-26 value_predicate_query_not_offered_is_refused", func(e *env) {
		err := e.proxy.conn.Invoke(e.ctx, "/prism.data.v1.KeyValue/Query", &datav1.GetRequest{Namespace: e.namespace}, &datav1.GetResponse{})
		fails(e.t, err, fault.Unimplemented, fault.Method, fault.NotApplied)
		err = e.proxy.conn.Invoke(e.ctx, "/prism.admin.v1.AdminService/GetSnapshot", &datav1.GetRequest{}, &datav1.GetResponse{})
		fails(e.t, err, fault.Unimplemented, fault.Method, fault.NotApplied)
	}},
	{"absent_namespace_is_told", func(e *env) {
		_, err := e.client.Get(e.ctx, &datav1.GetRequest{Namespace: "no-such", Id: []byte("x")})
		if f := fails(e.t, err, fault.NotFound, fault.Namespace, fault.NotApplied); f.Metadata["namespace"] != "no-such" {
			e.t.Errorf("the namespace is not named: %v", f.Metadata)
		}
		_, err = e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace})
		if f := fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied); f.Metadata["namespace"] != e.namespace {
			e.t.Errorf("the namespace is not named: %v", f.Metadata)
		}
	}},
	{"what_is_no_name_of_a_namespace_is_told_so", func(e *env) {
		for _, name := range []string{"", "ab", "Orders", "1st", "-x-", "a_b", "a/b", strings.Repeat("x", 64)} {
			for _, client := range []datav1.KeyValueClient{e.client, e.other} {
				_, err := client.Get(e.ctx, &datav1.GetRequest{Namespace: name, Id: []byte("x")})
				f := fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
				if len(f.Violations) != 1 || f.Violations[0].Field != "namespace" {
					e.t.Errorf("%q: violations %v", name, f.Violations)
				}
			}
		}
	}},
	{"the_last_namespace_of_a_message_counts", func(e *env) {
		// Two fields 1 on the wire: a decoder takes the last, so must the route.
		e.put("id", "", "mine")
		raw := must[[]byte](e.t)(proto.Marshal(&datav1.GetRequest{Namespace: "no-such", Id: []byte("id")}))
		raw = append(raw, must[[]byte](e.t)(proto.Marshal(&datav1.GetRequest{Namespace: e.namespace}))...)
		in, out := &datav1.GetRequest{}, &datav1.GetResponse{}
		in.ProtoReflect().SetUnknown(raw)
		if err := e.proxy.conn.Invoke(e.ctx, "/prism.data.v1.KeyValue/Get", in, out); err != nil || string(out.GetItem().GetValue()) != "mine" {
			e.t.Errorf("got %v, %v", out, err)
		}
	}},
	{"answers_tell_the_version_and_the_timing_asked_for", func(e *env) {
		var header, trailer metadata.MD
		ctx := metadata.AppendToOutgoingContext(e.ctx, "prism-debug", "timing")
		for _, client := range []datav1.KeyValueClient{e.client, e.other} { // the other forwards where the store has one owner
			must[*datav1.GetResponse](e.t)(client.Get(ctx, &datav1.GetRequest{Namespace: e.namespace, Id: []byte("x")}, grpc.Header(&header), grpc.Trailer(&trailer)))
			described := must[*datav1.DescribeResponse](e.t)(client.Describe(e.ctx, &datav1.DescribeRequest{Namespace: e.namespace}))
			if got := header.Get("prism-config-version"); len(got) != 1 || got[0] != described.GetConfigVersion() || len(got[0]) != 64 {
				e.t.Errorf("version %v, described %q", got, described.GetConfigVersion())
			}
			if got := trailer.Get("prism-timing"); len(got) != 1 || !strings.Contains(got[0], "backend=") {
				e.t.Errorf("timing %v", got)
			}
		}
	}},
	{"describe_says_what_holds", func(e *env) {
		d := must[*datav1.DescribeResponse](e.t)(e.client.Describe(e.ctx, &datav1.DescribeRequest{Namespace: e.namespace}))
		if !slices.Equal(d.GetInterfaces(), e.config.GetPatterns()[0].GetInterfaces()) || d.GetMaxValueBytes() != testMaxValue ||
			d.GetMaxIdBytes() != 1024 || d.GetMaxBatchEntries() != 1000 || len(d.GetConsistencyLevels()) != 3 ||
			(d.GetTtlGranularity().AsDuration() == time.Millisecond) != slices.Contains(d.GetInterfaces(), keyvalue.TTL) || d.GetDefaultDeadline().AsDuration() != 5*time.Second || d.GetDurability() == "" {
			e.t.Errorf("described %v", d)
		}
		large := uint64(0)
		if slices.Contains(d.GetInterfaces(), keyvalue.Large) {
			large = driver.MaxLarge
		}
		if (d.GetIdempotencyWindow().AsDuration() == keyvalue.TokenWindow) != slices.Contains(d.GetInterfaces(), keyvalue.Idempotency) || d.GetMaxLargeValueBytes() != large || d.GetMaxStaleness() != nil {
			e.t.Errorf("described %v", d)
		}
		bare := must[*datav1.DescribeResponse](e.t)(e.client.Describe(e.ctx, &datav1.DescribeRequest{Namespace: e.bare()}))
		if bare.GetIdempotencyWindow() != nil || bare.GetMaxLargeValueBytes() != 0 || bare.GetTtlGranularity() != nil {
			e.t.Errorf("a namespace without them is described with interfaces: %v", bare)
		}
		if strings.Contains(d.String(), e.store.backend.GetName()) {
			e.t.Error("the description names the backend")
		}
	}},
}

var expiryCases = []testCase{
	{"KT-02 bad_ttl_refused", func(e *env) {
		for _, ttl := range []*durationpb.Duration{{}, {Seconds: -1}, {Nanos: -1}, {Seconds: 315360001}, {Seconds: 1 << 60}, {Seconds: 1, Nanos: -1}} {
			_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Expiry: &datav1.Expiry{Is: &datav1.Expiry_Ttl{Ttl: ttl}}})
			fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		}
	}},
	{"KT-11 touch", func(e *env) {
		e.put("id", "", "v")
		at := e.clock.now().Add(time.Hour).Truncate(time.Second)
		must[*datav1.TouchResponse](e.t)(e.client.Touch(e.ctx, &datav1.TouchRequest{Namespace: e.namespace, Id: []byte("id"), Expiry: &datav1.Expiry{Is: &datav1.Expiry_At{At: timestamppb.New(at)}}}))
		if got := e.get("id", ""); !got.GetExpireAt().AsTime().Equal(at) || string(got.GetValue()) != "v" {
			e.t.Errorf("after touch %v, want expiry %v", got, at)
		}
		_, err := e.client.Touch(e.ctx, &datav1.TouchRequest{Namespace: e.namespace, Id: []byte("absent"), Expiry: &datav1.Expiry{Is: &datav1.Expiry_Never{Never: true}}})
		fails(e.t, err, fault.NotFound, fault.KeyRequired, fault.NotApplied)
		_, err = e.client.Touch(e.ctx, &datav1.TouchRequest{Namespace: e.namespace, Id: []byte("id")})
		fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
	}},
	{"KT-16 absolute_at_in_past_refused", func(e *env) {
		for _, at := range []time.Time{e.clock.now().Add(-time.Second), time.Unix(0, 0), e.clock.now().AddDate(20, 0, 0)} {
			_, err := e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Expiry: &datav1.Expiry{Is: &datav1.Expiry_At{At: timestamppb.New(at)}}})
			fails(e.t, err, fault.Invalid, fault.Field, fault.NotApplied)
		}
	}},
	{"KT-17 one_ms_and_10_years", func(e *env) {
		for _, ttl := range []time.Duration{time.Millisecond, 10 * 365 * 24 * time.Hour} {
			out := must[*datav1.PutResponse](e.t)(e.client.Put(e.ctx, &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Expiry: &datav1.Expiry{Is: &datav1.Expiry_Ttl{Ttl: durationpb.New(ttl)}}}))
			if out.GetExpireAt() == nil {
				e.t.Errorf("ttl %v: no expiry", ttl)
			}
		}
	}},
}
