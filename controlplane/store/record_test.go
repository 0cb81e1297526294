package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

// TestOneChangeOfTenThousandNamespaces takes what the API lets through at most, with the longest names and notes: the
// history tells all of it, to other replicas too.
func TestOneChangeOfTenThousandNamespaces(t *testing.T) {
	const many = 10_000
	a, b := open(t, store.Config{Timeout: 10 * time.Second, Policies: release.Policies{Scoped: &configv1.ReleasePolicy{}}}), open(t, store.Config{})
	author, message := strings.Repeat("a", 256), strings.Repeat("m", 4096)
	for version, content := range []string{"1", "2"} { // what updates has two hashes for each
		sets := make([]snapshot.Set, many)
		for i := range sets {
			sets[i] = namespace(t, fmt.Sprintf("orders-%05d-%s", i, strings.Repeat("x", 50)), content)
			sets[i].Author, sets[i].Message, sets[i].RequestID = author, message, "request-"+content
			sets[i].TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		}
		sets[many-1].Author, sets[many-1].Message, sets[many-1].RequestID = "", "", ""
		sets[many-2].Message = "another"
		if c := commit(t, a, sets...); c.Snapshot.Version != uint64(version+1) {
			t.Fatalf("version %d, want %d", c.Snapshot.Version, version+1)
		}
	}
	wait(t, b.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 2 })
	own, err := a.Snapshot(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	followed, err := b.Snapshot(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	history, err := b.Snapshots(t.Context(), 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(own, followed) || !proto.Equal(own, history[0]) {
		t.Error("replicas tell different histories")
	}
	for i, c := range own.GetChanges() {
		wantAuthor, wantMessage, wantRequest := author, message, "request-2"
		switch i {
		case many - 1:
			wantAuthor, wantMessage, wantRequest = "", "", ""
		case many - 2:
			wantMessage = "another"
		}
		if c.GetAuthor() != wantAuthor || c.GetMessage() != wantMessage || c.GetRequestId() != wantRequest || c.GetSameNote() ||
			c.GetTraceParent() == "" || !c.GetInRelease() {
			t.Fatalf("change %d is by %.20q of %.20q because of %.20q", i, c.GetAuthor(), c.GetRequestId(), c.GetMessage())
		}
	}
	if got := len(own.GetChanges()); got != many {
		t.Errorf("%d changes are told", got)
	}
}

// TestMuchIsGivenMoreTime commits over a connection that takes longer for the parts of a large commit than one write
// may take.
func TestMuchIsGivenMoreTime(t *testing.T) {
	w := newWire(t, etcd.Endpoint())
	s := open(t, store.Config{Client: dial(t, w.endpoint()), Timeout: 400 * time.Millisecond})
	commit(t, s, namespace(t, "orders", "1"))
	var sets []snapshot.Set
	for i := range 9 {
		sets = append(sets, namespace(t, fmt.Sprintf("orders-%d", i), strings.Repeat("x", 400<<10)))
	}
	w.pace.Store(int64(8 * time.Millisecond))
	commit(t, s, sets...)
}
