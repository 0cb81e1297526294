package fleet

import (
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// arbitrary is some cell: with a stream here or not, reported here or not.
func arbitrary(r *rand.Rand) *controlv1.CellState {
	root := func() []byte { return []byte{byte(r.IntN(3) + 1)} }
	c := &controlv1.CellState{Proxy: "a", Partition: 1, Build: "1", LastSeen: timestamppb.New(time.Unix(r.Int64N(1<<40), 0))}
	if r.IntN(2) == 0 {
		c.SentRoot, c.AcceptedRoot, c.AcceptedSharedRoot = root(), root(), root()
	}
	if r.IntN(2) == 0 {
		c.ServingRoot, c.ServingSharedRoot, c.SnapshotVersion = root(), root(), r.Uint64N(9)+1
		c.Traffic, c.Drifted = &controlv1.Traffic{Calls: r.Uint64N(9)}, []string{"ns/x"}[:r.IntN(2)]
		c.Unready = []*controlv1.Unready{{Namespace: "x"}}[:r.IntN(2)]
	}
	c.Rejections = []*configv1.Rejection{{Resource: "ns/x"}}[:r.IntN(2)]
	return c
}

func TestMerge(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		a, b := arbitrary(r), arbitrary(r)
		before, beforeB := proto.CloneOf(a), proto.CloneOf(b)
		m := merge(a, b)
		if !proto.Equal(m, merge(b, a)) {
			t.Fatalf("the order counts: %v and %v", a, b)
		}
		if !proto.Equal(merge(m, a), m) || !proto.Equal(merge(b, m), m) {
			t.Fatalf("what is merged already changes something: %v and %v", a, b)
		}
		if !proto.Equal(a, before) || !proto.Equal(b, beforeB) {
			t.Fatal("what is merged was changed")
		}
		newer, older := a, b
		if a.GetLastSeen().AsTime().Before(b.GetLastSeen().AsTime()) {
			newer, older = b, a
		}
		serving := newer
		if !reported(newer) {
			serving = older
		}
		if string(m.GetServingRoot()) != string(serving.GetServingRoot()) || m.GetTraffic().GetCalls() != serving.GetTraffic().GetCalls() ||
			len(m.GetDrifted()) != len(serving.GetDrifted()) || len(m.GetUnready()) != len(serving.GetUnready()) {
			t.Fatalf("what is served is not of one report: %v of %v and %v", m, a, b)
		}
		if !m.GetLastSeen().AsTime().Equal(newer.GetLastSeen().AsTime()) {
			t.Fatalf("seen last at %v", m.GetLastSeen())
		}
	}
	if c := arbitrary(r); merge(nil, c) != c {
		t.Error("of one, another is told")
	}
}

// TestServedIsToldSinceWhen lets a proxy serve one thing after another and report to one replica after another.
func TestServedIsToldSinceWhen(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	const runs = 2000
	right := 0
	for range runs {
		replicas := make([]*controlv1.ServedAtResponse, 3)
		for i := range replicas {
			replicas[i] = &controlv1.ServedAtResponse{}
		}
		at, serving, truth := replicas[0], byte(0), int64(0)
		for now := int64(1); now < 12; now++ {
			moves := r.IntN(3) == 0 || now == 1
			if moves {
				at = replicas[r.IntN(3)]
				at.Begun = timestamppb.New(time.Unix(now, 0))
			}
			changes := r.IntN(2) == 0 || now == 1
			if changes {
				if next := byte(r.IntN(3) + 1); next != serving {
					serving, truth = next, now
				}
			}
			if !moves && !changes {
				continue
			}
			c := &controlv1.Served{Partition: 1, Root: []byte{serving}, Since: timestamppb.New(time.Unix(now, 0))}
			if old := at.GetCells(); len(old) > 0 {
				c.Other = c.GetSince()
				if old[0].GetRoot()[0] == serving {
					// What it knows of is that it was so before and is so now.
					c.Since, c.Other = old[0].GetSince(), old[0].GetOther()
				}
			}
			at.Cells = []*controlv1.Served{c}
		}
		cells, ok := mergeServed(replicas)
		if !ok || len(cells) != 1 || cells[0].GetRoot()[0] != serving {
			t.Fatalf("told %v, served %d: %v", cells, serving, replicas)
		}
		// It may be told late, where nobody heard of it in one piece, and never early.
		switch since := cells[0].GetSince().AsTime().Unix(); {
		case since < truth || since > 11:
			t.Fatalf("since %d, in truth %d: %v", since, truth, replicas)
		case since == truth:
			right++
		}
	}
	if right < runs/2 {
		t.Errorf("in %d of %d runs the time is right", right, runs)
	}
}
