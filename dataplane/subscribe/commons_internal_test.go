package subscribe

import (
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// commonVersion is a state with one member, as each of several clients makes it.
func commonVersion(t *testing.T, snapshot uint64) *version {
	t.Helper()
	o := Object{Hash: ident.HashOf([]byte("data")), Data: []byte("data")}
	m, err := manifest.New([]manifest.Entry{{Name: "ns/app", Hash: o.Hash}})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := proto.Marshal(&configv1.Sentinel{Root: m.Root().Bytes(), SnapshotVersion: snapshot, Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	v, err := newVersion(m, map[string]Object{"ns/app": o}, encoded)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCommonsKeepStatesOnce(t *testing.T) {
	c := NewCommons()
	first := c.version(commonVersion(t, 1))
	if c.version(commonVersion(t, 1)) != first {
		t.Error("the same state of another client is another value")
	}
	later := c.version(commonVersion(t, 2))
	if later == first || later.sentinel.GetSnapshotVersion() != 2 || later.manifest != first.manifest {
		t.Error("a later snapshot with the same root must have its own sentinel and the same contents")
	}
	runtime.KeepAlive(first)
}

func TestCommonsKeepAssignmentsOnce(t *testing.T) {
	encoded, err := proto.Marshal(&configv1.Assignment{Epoch: 1, Partitions: []*configv1.PartitionOwners{{}}})
	if err != nil {
		t.Fatal(err)
	}
	c := NewCommons()
	first, err := c.assignment(encoded, "a")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.assignment(encoded, "a"); err != nil || again != first {
		t.Errorf("%p, %v; want %p", again, err, first)
	}
	if other, err := c.assignment(encoded, "b"); err != nil || other == first || other.version != "b" {
		t.Errorf("%+v, %v; want one of version b", other, err)
	}
	if _, err := c.assignment([]byte("x"), "c"); err == nil {
		t.Error("nonsense passes")
	}
}

func TestCommonsKeepNothingThatNobodyHas(t *testing.T) {
	c := NewCommons()
	root := c.version(commonVersion(t, 1)).root()
	for range 100 { // collection and clean-up are concurrent
		runtime.GC()
		c.versions.mu.Lock()
		kept := len(c.versions.by)
		c.versions.mu.Unlock()
		if kept == 0 && c.versions.get(root) == nil {
			return
		}
		runtime.Gosched()
	}
	t.Error("a state that nobody refers to is kept")
}
