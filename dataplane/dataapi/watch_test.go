package dataapi_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// watching is a watch that is in place.
type watching struct {
	t      testing.TB
	stream datav1.KeyValue_WatchClient
	read   []*datav1.WatchEvent // received and not asked for
}

// watch begins to follow an id, and returns when the watch is in place.
func (c caller) watch(id string, after []byte) *watching {
	c.t.Helper()
	w := &watching{t: c.t, stream: must[datav1.KeyValue_WatchClient](c.t)(c.client.Watch(c.ctx, &datav1.WatchRequest{Namespace: c.namespace, Id: []byte(id), StartVersion: after}))}
	out, err := w.stream.Recv()
	if err != nil {
		c.t.Fatalf("watch: %v", err)
	}
	w.read = out.GetEvents()
	return w
}

// next is the next event, or the watch's end.
func (w *watching) next() (*datav1.WatchEvent, error) {
	for len(w.read) == 0 {
		out, err := w.stream.Recv()
		if err != nil {
			return nil, err
		}
		w.read = out.GetEvents()
	}
	event := w.read[0]
	w.read = w.read[1:]
	return event, nil
}

func (w *watching) wants(kind datav1.WatchKind, key, value string) *datav1.WatchEvent {
	w.t.Helper()
	event, err := w.next()
	if err != nil {
		w.t.Fatalf("want %s of %q: %v", kind, key, err)
	}
	if event.GetKind() != kind || string(event.GetItem().GetKey()) != key || string(event.GetItem().GetValue()) != value {
		w.t.Fatalf("event %v, want %s of %q, %q", event, kind, key, value)
	}
	return event
}

// ended checks how a watch ended and returns where to go on.
func (w *watching) ended(code fault.Code, reason fault.Reason) []byte {
	w.t.Helper()
	_, err := w.next()
	f := fails(w.t, err, code, reason, faultgrpc.FromStatus(err).Outcome)
	at, err := base64.StdEncoding.DecodeString(f.Metadata["start_version"])
	if err != nil || len(at) == 0 {
		w.t.Fatalf("start_version %q: %v", f.Metadata["start_version"], err)
	}
	return at
}

const (
	isPut    = datav1.WatchKind_WATCH_KIND_PUT
	isDelete = datav1.WatchKind_WATCH_KIND_DELETE
	isExpire = datav1.WatchKind_WATCH_KIND_EXPIRE
	isResync = datav1.WatchKind_WATCH_KIND_RESYNC
)

var watchCases = []testCase{
	{"KC-06 watch_put_delete_expire", func(e *env) {
		other := e.caller
		other.client = e.other
		watches := []*watching{e.watch("id", nil), other.watch("id", nil)}
		e.put("id", "a", "v")
		e.put("elsewhere", "a", "v")
		must[*datav1.DeleteResponse](e.t)(e.client.Delete(e.ctx, &datav1.DeleteRequest{Namespace: e.namespace, Id: []byte("id"), Key: []byte("a")}))
		must[*datav1.PutResponse](e.t)(e.other.Put(e.ctx, &datav1.PutRequest{
			Namespace: e.namespace, Id: []byte("id"), Key: []byte("b"), Expiry: &datav1.Expiry{Is: &datav1.Expiry_Ttl{Ttl: durationpb.New(time.Millisecond)}},
		}))
		for _, w := range watches {
			w.wants(isPut, "a", "v")
			w.wants(isDelete, "a", "")
			w.wants(isPut, "b", "")
			w.wants(isExpire, "b", "")
		}
	}},
	{"KC-07 watch_resume_no_gap", func(e *env) {
		ctx, leave := context.WithCancel(e.ctx)
		first := e.caller
		first.ctx = ctx
		w := first.watch("id", nil)
		e.put("id", "0", "v")
		last := w.wants(isPut, "0", "v").GetItem().GetVersion()
		leave()
		for n := range 50 {
			e.put("id", fmt.Sprint(n+1), "v")
		}
		other := e.caller
		other.client = e.other
		w = other.watch("id", last)
		for n := range 50 {
			w.wants(isPut, fmt.Sprint(n+1), "v")
		}
	}},
	{"KC-08 watch_resync_announced", func(e *env) {
		w := e.watch("id", []byte("a version that nobody gave"))
		w.wants(isResync, "", "")
		e.put("id", "a", "v")
		w.wants(isPut, "a", "v")
	}},
	{"KC-09 slow_watcher_cut", func(e *env) {
		// Enough for what is under way on the connection and for what waits, and not more than the store keeps.
		const all, window = 2000, 64 << 10
		conn, err := grpc.NewClient("passthrough:///"+e.proxy.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window))
		if err != nil {
			e.t.Fatal(err)
		}
		defer conn.Close()
		slow := e.caller
		slow.client = datav1.NewKeyValueClient(conn)
		w := slow.watch("id", nil)
		value := make([]byte, 600)
		for from := 0; from < all; from += 500 {
			in := e.writes(from+500, value)
			in.Writes = in.Writes[from:]
			must[*datav1.BatchWriteResponse](e.t)(e.client.BatchWrite(e.ctx, in))
		}
		// Each comes once; the writes of a batch are in no order.
		met := map[string]bool{}
		n := 0
		for ; ; n++ {
			event, err := w.next()
			if err != nil {
				f := fails(e.t, err, fault.Exhausted, fault.SlowConsumer, "")
				at := must[[]byte](e.t)(base64.StdEncoding.DecodeString(f.Metadata["start_version"]))
				w = e.watch("id", at)
				break
			}
			if met[string(event.GetItem().GetKey())] {
				e.t.Fatalf("event %d is %q again", n, event.GetItem().GetKey())
			}
			met[string(event.GetItem().GetKey())] = true
		}
		e.t.Logf("cut after %d of %d events", n, all)
		if n == all {
			e.t.Error("the watcher was not cut: nothing is proved")
		}
		for ; n < all; n++ {
			event := must[*datav1.WatchEvent](e.t)(w.next())
			if event.GetKind() != isPut || met[string(event.GetItem().GetKey())] || !bytes.Equal(event.GetItem().GetValue(), value) {
				e.t.Fatalf("event %d is %v", n, event)
			}
			met[string(event.GetItem().GetKey())] = true
		}
	}},
}

// TestAWatchEndsWhenItsStoreIsNotServedHere has a watch through the proxy that serves the namespace and one through a
// proxy that forwards it, and then ends it from the server's side.
func TestAWatchEndsWhenItsStoreIsNotServedHere(t *testing.T) {
	for _, tc := range []struct {
		name   string
		end    func(s *statetest.Builder, config *configv1.NamespaceConfig, owner *proxy)
		reason fault.Reason
	}{
		{"another backend", func(s *statetest.Builder, config *configv1.NamespaceConfig, _ *proxy) {
			config.Patterns[0].Bindings[0].Backend = "memory-2"
			s.Namespace(config)
		}, fault.NotOwner},
		{"the namespace is being deleted", func(s *statetest.Builder, config *configv1.NamespaceConfig, _ *proxy) {
			config.Draining = true
			s.Namespace(config)
		}, fault.NotOwner},
		{"the namespace is deleted", func(s *statetest.Builder, _ *configv1.NamespaceConfig, _ *proxy) { s.Remove("orders") }, fault.NotOwner},
		{"the proxy drains", func(_ *statetest.Builder, _ *configv1.NamespaceConfig, owner *proxy) { owner.api.Drain() }, fault.Draining},
	} {
		t.Run(tc.name, func(t *testing.T) {
			owner, other := startProxy(t, "0", nil), startProxy(t, "1", nil)
			s := statetest.New(t, 8, owner.member("0"), other.member("1"))
			s.Backend(&configv1.Backend{Name: "memory-1", Type: "memory"})
			s.Backend(&configv1.Backend{Name: "memory-2", Type: "memory"})
			config := statetest.KeyValue("orders", "memory-1", "memory")
			config.Patterns[0].Interfaces = offeredBy(t, "memory")
			s.Namespace(config)
			applyAll(t, s, owner, other)
			var watches []*watching
			for _, p := range []*proxy{owner, other} {
				watches = append(watches, caller{t, t.Context(), p.client, "orders"}.watch("id", nil))
			}
			c := caller{t, t.Context(), owner.client, "orders"}
			c.put("id", "a", "v")
			for _, w := range watches {
				w.wants(isPut, "a", "v")
			}

			config.Limits.Concurrency++ // the same store: the watch goes on
			s.Namespace(config)
			applyAll(t, s, owner, other)
			version := c.put("id", "b", "v").GetVersion()
			for _, w := range watches {
				w.wants(isPut, "b", "v")
			}

			tc.end(s, config, owner)
			applyAll(t, s, owner, other)
			for _, w := range watches {
				if at := w.ended(fault.Unavailable, tc.reason); string(at) != string(version) {
					t.Errorf("to go on after %x, want %x", at, version)
				}
			}
			if n := owner.routes.Undrained(); n != 0 {
				t.Errorf("%d tables are held by watches that ended", n)
			}
		})
	}
}
