package store

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prism-gateway/prism/shared/fault"
)

// ask makes a request of so many objects.
func ask(team string, weight, objects int) *request {
	return &request{team: team, weight: weight, objects: objects, answer: make(chan answer, 1)}
}

func put(t *testing.T, q *queue, all ...*request) {
	t.Helper()
	for _, r := range all {
		if err := q.add(r); err != nil {
			t.Fatal(err)
		}
	}
}

// drain takes all that wait, and returns the batches.
func drain(q *queue, objects int) [][]*request {
	var batches [][]*request
	for {
		batch := q.take(objects)
		if len(batch) == 0 {
			return batches
		}
		batches = append(batches, batch)
	}
}

// TestQueueIsFair holds random loads against what start-time fair queueing promises.
func TestQueueIsFair(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			q := newQueue()
			batch := 1 + random.IntN(40)
			largest := 1 + random.IntN(batch) // of one request
			teams := 2 + random.IntN(8)
			weights := make([]int, teams)
			for i := range weights {
				weights[i] = 1 + random.IntN(4)
			}
			name := func(i int) string { return fmt.Sprint("team-", i) }
			// All have work for the whole time.
			want := map[string][]*request{}
			for range 200 {
				for i := range teams {
					r := ask(name(i), weights[i], 1+random.IntN(largest))
					want[name(i)] = append(want[name(i)], r)
					put(t, &q, r)
				}
			}
			served := make([]float64, teams)
			left := slices.Repeat([]int{200}, teams)
			for busy := true; busy; {
				taken := q.take(batch)
				size := 0
				for _, r := range taken {
					var i int
					fmt.Sscanf(r.team, "team-%d", &i)
					if first := want[r.team][0]; first != r {
						t.Fatalf("%s: not in the order of arrival", r.team)
					}
					want[r.team] = want[r.team][1:]
					size += r.size()
					served[i] += r.cost()
					if left[i]--; left[i] == 0 {
						busy = false // it has no work any more, so shares mean nothing from here on
					}
					// The bound of start-time fair queueing is one request of each.
					for j := range teams {
						bound := float64(largest)/float64(weights[i]) + float64(largest)/float64(weights[j])
						if d := math.Abs(served[i] - served[j]); busy && d > bound {
							t.Fatalf("team %d had %.1f for its weight and team %d %.1f: they may differ by %.1f", i, served[i], j, served[j], bound)
						}
					}
				}
				if size > batch {
					t.Fatalf("a batch of %d objects, want at most %d", size, batch)
				}
			}
			for range drain(&q, batch) {
			}
			if q.count != 0 || len(q.turns) != 0 || len(q.teams) != 0 {
				t.Errorf("left: %d requests, %d turns, %d teams", q.count, len(q.turns), len(q.teams))
			}
		})
	}
}

// TestQueueStarvesNobody adds a request of a team that has used nothing to random loads: of each other team at most one
// request goes before it, however many wait.
func TestQueueStarvesNobody(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 2))
		q := newQueue()
		const batch = 16
		teams := 1 + random.IntN(6)
		for range 300 {
			put(t, &q, ask(fmt.Sprint("noisy-", random.IntN(teams)), 1+random.IntN(3), 1+random.IntN(batch)))
			if random.IntN(8) == 0 {
				q.take(batch)
			}
		}
		late := ask("quiet", 1, 1+random.IntN(batch))
		put(t, &q, late)
		before := map[string]int{}
		for done := false; !done; {
			for _, r := range q.take(batch) {
				if done = r == late; done {
					break
				}
				before[r.team]++
			}
		}
		for team, n := range before {
			if n > 1 {
				t.Fatalf("seed %d: %d requests of %s went before the only one of another team", seed, n, team)
			}
		}
	}
}

func TestQueueBatches(t *testing.T) {
	const batch = 8
	sizes := func(batches [][]*request) string {
		var out [][]int
		for _, b := range batches {
			var one []int
			for _, r := range b {
				one = append(one, r.size())
			}
			out = append(out, one)
		}
		return fmt.Sprint(out)
	}
	t.Run("what is larger than a batch goes alone", func(t *testing.T) {
		q := newQueue()
		put(t, &q, ask("a", 1, 3), ask("b", 1, 100), ask("c", 1, 3))
		if got := sizes(drain(&q, batch)); got != "[[3] [100] [3]]" {
			t.Error(got)
		}
	})
	t.Run("after a large one it is the turn of the small", func(t *testing.T) {
		q := newQueue()
		put(t, &q, ask("a", 1, 100), ask("b", 1, 100), ask("c", 1, 100), ask("d", 1, 1), ask("e", 1, 2))
		if got := sizes(drain(&q, batch)); got != "[[100] [1 2] [100] [100]]" {
			t.Error(got)
		}
	})
	t.Run("those given up are left out and cost nothing", func(t *testing.T) {
		q := newQueue()
		gone, next := ask("a", 1, 7), ask("a", 1, 2)
		put(t, &q, gone, next, ask("b", 1, 4))
		gone.taken.Store(true)
		if got := sizes(drain(&q, batch)); got != "[[2 4]]" {
			t.Error(got)
		}
	})
	t.Run("a team's weight is its share", func(t *testing.T) {
		q := newQueue()
		for range 30 {
			put(t, &q, ask("a", 3, 1), ask("b", 1, 1))
		}
		of := map[string]int{}
		for _, r := range append(q.take(batch), q.take(batch)...) {
			of[r.team]++
		}
		if of["a"] != 12 || of["b"] != 4 {
			t.Error(of)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	q := newQueue()
	var noisy []*request
	for range maxQueue {
		r := ask("noisy", 1, 1)
		noisy = append(noisy, r)
		put(t, &q, r)
	}
	if err := q.add(ask("noisy", 1, 1)); !fault.Is(err, fault.Queue) {
		t.Errorf("one more of the same team: %v", err)
	}
	quiet := ask("quiet", 1, 1)
	put(t, &q, quiet)
	if a := <-noisy[maxQueue-1].answer; !fault.Is(a.err, fault.Queue) {
		t.Errorf("the last of the team that has most was answered %v", a.err)
	}
	if batch := q.take(2); len(batch) != 2 || batch[0] != noisy[0] || batch[1] != quiet {
		t.Error("the quiet team is not served next")
	}
	q.close(errNotLoaded)
	if err := q.add(quiet); err == nil {
		t.Error("a closed queue takes requests")
	}
	if a := <-noisy[1].answer; a.err == nil {
		t.Error("a closed queue leaves requests without an answer")
	}
}
