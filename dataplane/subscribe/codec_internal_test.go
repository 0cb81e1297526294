package subscribe

import (
	"bytes"
	"crypto/sha256"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

func exampleState(t testing.TB) *saved {
	t.Helper()
	marshal := func(m proto.Message) []byte {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	data := []byte("bytes")
	m, err := manifest.New([]manifest.Entry{{Name: "ns/app", Hash: ident.HashOf(data)}})
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]Object{"ns/app": {Hash: ident.HashOf(data), Data: data}}
	v, err := newVersion(m, members, marshal(&configv1.Sentinel{Root: m.Root().Bytes(), Count: 1}))
	if err != nil {
		t.Fatal(err)
	}
	a, err := parseAssignment(marshal(&configv1.Assignment{
		Epoch: 3, Members: []*configv1.Member{{Id: "proxy-1"}}, Partitions: []*configv1.PartitionOwners{{Owners: []uint32{0}}},
	}), "version")
	if err != nil {
		t.Fatal(err)
	}
	good := Object{Hash: ident.HashOf([]byte("good")), Data: []byte("good")}
	return &saved{
		node: "proxy-1", installation: "installation", revision: -7, lastContact: time.Unix(5, 6), assignment: a, shared: v,
		sets: map[ident.Hash]*version{v.root(): v},
		order: []savedCell{{partition: 9, version: v, refused: map[string]refusal{
			"ns/app": {hash: ident.HashOf(data), shared: v.root(), rejection: &configv1.Rejection{Reason: "bad"}, good: &good},
			"ns/b":   {hash: ident.HashOf(data), rejection: &configv1.Rejection{}},
		}}},
	}
}

func TestStateFileIsReadAsWritten(t *testing.T) {
	s := exampleState(t)
	got, err := decodeState(encodeState(s))
	if err != nil {
		t.Fatal(err)
	}
	if got.node != s.node || got.installation != s.installation || got.revision != s.revision || !got.lastContact.Equal(s.lastContact) ||
		got.assignment.version != "version" || got.assignment.count() != 1 || len(got.sets) != 1 || got.current != 1 || len(got.cells) != 1 {
		t.Fatalf("got %+v", got)
	}
	cell := got.cells[0]
	if cell.partition != 9 || !bytes.Equal(cell.sentinel, s.shared.encoded) || len(cell.refused) != 2 || cell.refused["ns/b"].good != nil {
		t.Fatalf("got %+v", cell)
	}
	if r := cell.refused["ns/app"]; r.rejection.GetReason() != "bad" || r.shared != s.shared.root() || string(r.good.Data) != "good" {
		t.Fatalf("got %+v", r)
	}
}

func FuzzDecodeState(f *testing.F) {
	good := encodeState(exampleState(f))
	f.Add(good[len(stateMagic) : len(good)-sha256.Size])
	f.Add([]byte{kindCell, 1, 0})
	f.Add([]byte{kindRefusal, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, fields []byte) {
		if len(fields) > len(stateMagic) {
			decodeState(fields) // as it stands; below with a checksum that holds
		}
		file := append([]byte(stateMagic), fields...)
		sum := sha256.Sum256(file)
		s, err := decodeState(append(file, sum[:]...))
		if err != nil {
			return
		}
		if s.current > len(s.sets) {
			t.Fatalf("the current set is the %d. of %d", s.current, len(s.sets))
		}
		for _, c := range s.cells {
			for name, r := range c.refused {
				if r.rejection == nil || r.good != nil && ident.HashOf(r.good.Data) != r.good.Hash {
					t.Fatalf("%v: the refusal of %s is %+v", c.partition, name, r)
				}
			}
		}
	})
}

func FuzzDecodeMembers(f *testing.F) {
	f.Add(encodeMembers(exampleState(f).shared))
	f.Add([]byte{1, 'a', 0, 1, 'a', 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, members, err := decodeMembers(data)
		if err != nil {
			return
		}
		if m.Len() != len(members) {
			t.Fatalf("%d members, %d in the manifest", len(members), m.Len())
		}
		again, _, err := decodeMembers(encodeMembers(&version{manifest: m, members: members}))
		if err != nil || again.Root() != m.Root() {
			t.Fatalf("written and read again: %v, %v", again, err)
		}
	})
}
