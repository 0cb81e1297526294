package gate_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/release/gate"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

var (
	start = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	boot  = start.Add(-24 * time.Hour)

	old   = roots("old")
	given = roots("given")
)

func roots(text string) gate.Roots {
	return gate.Roots{Partition: ident.HashOf([]byte(text)), Shared: ident.HashOf([]byte("shared"))}
}

func policy() *configv1.ReleasePolicy {
	return &configv1.ReleasePolicy{
		FirstPercent: 5, Soak: durationpb.New(30 * time.Second), Silence: durationpb.New(20 * time.Second),
		MaxFailedPoints: 1, MaxLatencyFactor: 2, MinCalls: 100,
	}
}

// calls are what a cell counted before the wave and since.
func calls(then, since gate.Traffic) (*gate.Traffic, *gate.Traffic) {
	then.Since = boot
	return &then, &gate.Traffic{Calls: then.Calls + since.Calls, Failed: then.Failed + since.Failed, Took: then.Took + since.Took, Since: boot}
}

// reached is a cell that serves what it was given; at is the time since the wave began.
func reached(at time.Duration) gate.Cell {
	c := gate.Cell{
		Partition: 7, Proxy: "proxy-1", Rank: 0, Wave: 2, Reached: true, Wants: []gate.Roots{given}, Since: start, Build: "v3",
		Seen: start.Add(at), Sent: given, Accepted: given, Serving: given,
	}
	c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{})
	return c
}

// other is a cell of the same partition that the release has not reached.
func other(at time.Duration) gate.Cell {
	c := gate.Cell{
		Partition: 7, Proxy: "proxy-2", Rank: 1, Wave: 4, Wants: []gate.Roots{old}, Since: start, Build: "v3",
		Seen: start.Add(at), Sent: old, Accepted: old, Serving: old,
	}
	c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{})
	return c
}

func TestJudge(t *testing.T) {
	rejection := &configv1.Rejection{Resource: "ns/orders", Field: "patterns[0]", Reason: "no such driver"}
	for name, tc := range map[string]struct {
		at     time.Duration // since the wave began
		held   time.Duration // since every cell has served it; below 0: not yet
		change func(c, o *gate.Cell)
		want   gate.Outcome
		reason string
		until  time.Duration
	}{
		"served for the soak":                 {at: 30 * time.Second, want: gate.Pass},
		"served for less":                     {at: 12 * time.Second, want: gate.Wait, reason: "held 18 s more", until: 30 * time.Second},
		"the soak counts from when all serve": {at: 31 * time.Second, held: 2 * time.Second, want: gate.Wait, reason: "held 1 s more", until: 32 * time.Second},
		"not seen to be served yet":           {at: time.Second, held: -1, want: gate.Wait, reason: "held 30 s more", until: 21 * time.Second},
		"an older state that has the release is as good": {at: 30 * time.Second, want: gate.Pass, change: func(c, _ *gate.Cell) {
			c.Wants = append(c.Wants, roots("newer"))
			c.Wants[0], c.Wants[1] = c.Wants[1], c.Wants[0]
		}},
		"a state nobody saw whose snapshot says that it has the release": {at: 30 * time.Second, want: gate.Pass, change: func(c, _ *gate.Cell) {
			c.Serving, c.Snapshot = roots("between"), 42
		}},
		"a snapshot before the release does not have it": {at: 30 * time.Second, want: gate.Fail, reason: "proxy-1 in p/0007 has accepted it and does not report that it serves it (given 20 s)", change: func(c, _ *gate.Cell) {
			c.Serving, c.Snapshot = old, 41
		}},
		"the shared collection counts": {at: 5 * time.Second, want: gate.Wait, reason: "does not report that it serves it", until: 20 * time.Second, change: func(c, _ *gate.Cell) {
			c.Serving.Shared = ident.HashOf([]byte("another"))
		}},
		"not acknowledged yet": {at: 5 * time.Second, want: gate.Wait, reason: "was sent it and has not acknowledged it", until: 20 * time.Second, change: func(c, _ *gate.Cell) {
			c.Serving, c.Accepted = old, old
		}},
		"not sent yet": {at: 5 * time.Second, want: gate.Wait, reason: "waits for it to be sent", until: 20 * time.Second, change: func(c, _ *gate.Cell) {
			c.Serving, c.Accepted, c.Sent = old, old, old
		}},
		"never heard of": {at: 20 * time.Second, want: gate.Fail, reason: "proxy-1 in p/0007 has not been heard of for 20 s", change: func(c, _ *gate.Cell) {
			*c = gate.Cell{Partition: c.Partition, Proxy: c.Proxy, Wave: c.Wave, Reached: true, Wants: c.Wants, Since: c.Since}
		}},
		"silent since": {at: 29 * time.Second, want: gate.Fail, reason: "has not been heard of for 21 s", change: func(c, _ *gate.Cell) {
			c.Seen = start.Add(8 * time.Second)
		}},
		"silent before the wave is not silent since": {at: 15 * time.Second, want: gate.Wait, reason: "held 15 s more", until: 20 * time.Second, change: func(c, _ *gate.Cell) {
			c.Seen = start.Add(-time.Hour)
		}},
		"an owner that came late has its own time": {at: 35 * time.Second, want: gate.Wait, reason: "waits for it to be sent", until: 50 * time.Second, change: func(c, _ *gate.Cell) {
			c.Since, c.Sent, c.Accepted, c.Serving = start.Add(30*time.Second), gate.Roots{}, gate.Roots{}, gate.Roots{}
		}},
		"a proxy that loads the partition is not waited for": {at: 35 * time.Second, want: gate.Pass, change: func(c, _ *gate.Cell) {
			c.Rank, c.Sent, c.Accepted, c.Serving = release.Other, gate.Roots{}, gate.Roots{}, gate.Roots{}
		}},
		"a proxy that has left the fleet is not silent": {at: 30 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Gone, c.Seen = true, start.Add(-time.Hour)
			*o = reached(30 * time.Second)
		}},
		"nobody is left to prove it": {at: 30 * time.Second, want: gate.Wait, reason: "every proxy of the wave has left the fleet", until: 50 * time.Second, change: func(c, _ *gate.Cell) {
			c.Gone = true
		}},
		"refused": {at: time.Second, want: gate.Fail, reason: "proxy-1 in p/0007 refused ns/orders: patterns[0]: no such driver (build v3)", change: func(c, _ *gate.Cell) {
			c.Rejections = []*configv1.Rejection{rejection}
		}},
		"refused where it has not been given": {at: 30 * time.Second, want: gate.Pass, change: func(_, o *gate.Cell) {
			o.Rejections = []*configv1.Rejection{rejection}
		}},
		"a namespace cannot serve, for a moment": {at: 30 * time.Second, want: gate.Wait, reason: "proxy-1 in p/0007 cannot serve namespace orders: pool closed", until: 45 * time.Second, change: func(c, _ *gate.Cell) {
			c.Unready = []gate.Unready{{Namespace: "orders", Reason: "pool closed", Since: start.Add(25 * time.Second)}}
		}},
		"a namespace cannot serve, for good": {at: 45 * time.Second, want: gate.Part, reason: "namespace orders not ready at proxy-1: pool closed", change: func(c, _ *gate.Cell) {
			c.Unready = []gate.Unready{{Namespace: "orders", Reason: "pool closed", Since: start.Add(25 * time.Second)}}
		}},
		"a namespace cannot serve, and a proxy is silent": {at: 45 * time.Second, want: gate.Fail, reason: "has not been heard of for 45 s", change: func(c, _ *gate.Cell) {
			c.Unready, c.Seen = []gate.Unready{{Namespace: "orders", Reason: "pool closed", Since: start}}, start
		}},
		"a namespace cannot serve, and calls fail": {at: 3 * time.Second, want: gate.Part, reason: "namespace orders not ready at proxy-1: pool closed; 50 % of 200 calls failed", change: func(c, o *gate.Cell) {
			c.Unready = []gate.Unready{{Namespace: "orders", Reason: "pool closed", Since: start}}
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 200, Failed: 100})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000, Failed: 3})
		}},
		"a namespace could not serve before either": {at: 45 * time.Second, want: gate.Pass, change: func(c, _ *gate.Cell) {
			c.Unready = []gate.Unready{{Namespace: "orders", Before: true}}
		}},
		"a namespace cannot serve on the others either": {at: 45 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Unready = []gate.Unready{{Namespace: "orders"}}
			o.Unready = c.Unready
		}},
		"more calls fail": {at: 30 * time.Second, want: gate.Fail,
			reason: "3.2 % of 1,250 calls failed on the 1 cell released, 0.1 % on the others; most of them, 40, on proxy-1 in p/0007",
			change: func(c, o *gate.Cell) {
				c.Then, c.Now = calls(gate.Traffic{Calls: 9000, Failed: 9}, gate.Traffic{Calls: 1250, Failed: 40})
				o.Then, o.Now = calls(gate.Traffic{Calls: 9000, Failed: 9}, gate.Traffic{Calls: 3000, Failed: 3})
			}},
		"as many fail on the others": {at: 30 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 1250, Failed: 40})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000, Failed: 90})
		}},
		"a few failures are not judged before the soak is over": {at: 10 * time.Second, want: gate.Wait, reason: "held 20 s more", until: 30 * time.Second, change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 200, Failed: 40})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000, Failed: 3})
		}},
		"many failures end it at once": {at: 3 * time.Second, want: gate.Fail, reason: "50 % of 200 calls failed", change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 200, Failed: 100})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000, Failed: 3})
		}},
		"too few calls say nothing": {at: 30 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 99, Failed: 99})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000})
		}},
		"without calls of the others its own before count": {at: 30 * time.Second, want: gate.Fail, reason: "10 % of 500 calls failed on the 1 cell released, 0 % before", change: func(c, _ *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{Calls: 5000}, gate.Traffic{Calls: 500, Failed: 50})
		}},
		"with nothing to compare with": {at: 30 * time.Second, want: gate.Pass, change: func(c, _ *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 500, Failed: 50})
		}},
		"counters of a proxy that started since": {at: 30 * time.Second, want: gate.Fail, reason: "10 % of 500 calls failed", change: func(c, o *gate.Cell) {
			c.Then = &gate.Traffic{Calls: 9000, Since: boot}
			c.Now = &gate.Traffic{Calls: 500, Failed: 50, Since: start}
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000})
		}},
		"counters without a beginning": {at: 30 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Then, c.Now = nil, &gate.Traffic{Calls: 500, Failed: 50, Since: boot}
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000})
		}},
		"calls of other partitions do not count": {at: 30 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 500, Failed: 50})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 3000})
			o.Partition = 8
		}},
		"slower": {at: 30 * time.Second, want: gate.Fail, reason: "1,000 calls took 25ms each on the 1 cell released, 10ms on the others", change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 1000, Took: 25 * time.Second})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 1000, Took: 10 * time.Second})
		}},
		"slower, by what nobody notices": {at: 30 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 1000, Took: 300 * time.Millisecond})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 1000, Took: 100 * time.Millisecond})
		}},
		"slower, within the factor": {at: 30 * time.Second, want: gate.Pass, change: func(c, o *gate.Cell) {
			c.Then, c.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 1000, Took: 19 * time.Second})
			o.Then, o.Now = calls(gate.Traffic{}, gate.Traffic{Calls: 1000, Took: 10 * time.Second})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c, o := reached(tc.at), other(tc.at)
			if tc.change != nil {
				tc.change(&c, &o)
			}
			in := gate.Input{Snapshot: 42, Wave: 2, Policy: policy(), Cells: []gate.Cell{c, o}, Held: start.Add(tc.held), Now: start.Add(tc.at)}
			if tc.held < 0 {
				in.Held = time.Time{}
			}
			v := gate.Judge(in)
			if v.Outcome != tc.want || !strings.Contains(v.Reason, tc.reason) || v.Outcome == gate.Pass && v.Reason != "" {
				t.Fatalf("%v, %q; want %v, %q", v.Outcome, v.Reason, tc.want, tc.reason)
			}
			if v.Outcome == gate.Wait && !v.Until.Equal(start.Add(tc.until)) {
				t.Errorf("to be judged again at %v, want %v", v.Until.Sub(start), tc.until)
			}
		})
	}
}

func TestAWaveThatIsServedIsToldSo(t *testing.T) {
	c := reached(0)
	in := gate.Input{Snapshot: 42, Wave: 2, Policy: policy(), Cells: []gate.Cell{c, other(0)}, Now: start}
	if v := gate.Judge(in); !v.Serving {
		t.Errorf("served, and got %+v", v)
	}
	in.Cells[0].Serving = old
	if v := gate.Judge(in); v.Serving {
		t.Errorf("not served, and got %+v", v)
	}
}

func TestManyReasonsAreCounted(t *testing.T) {
	var cells []gate.Cell
	for p := range ident.Partition(3) {
		c := reached(0)
		c.Partition, c.Seen = p, start.Add(-time.Hour)
		cells = append(cells, c)
	}
	v := gate.Judge(gate.Input{Snapshot: 42, Wave: 2, Policy: policy(), Cells: cells, Now: start.Add(time.Minute)})
	if want := "proxy-1 in p/0000 has not been heard of for 60 s (and 2 more)"; v.Outcome != gate.Fail || v.Reason != want {
		t.Errorf("%v, %q; want fail, %q", v.Outcome, v.Reason, want)
	}
}

// TestMoreFailuresNeverPass adds failed calls to random cells that the release has reached: a wave that failed, or would
// not pass, does not pass by that.
func TestMoreFailuresNeverPass(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	failed := 0
	for i := range 20_000 {
		var cells []gate.Cell
		for range 1 + r.IntN(4) {
			c := reached(30 * time.Second)
			if r.IntN(2) == 0 {
				c = other(30 * time.Second)
			}
			random := func() gate.Traffic {
				n := r.Uint64N(600)
				return gate.Traffic{Calls: n, Failed: min(n, r.Uint64N(12)), Took: time.Duration(n) * time.Duration(1+r.IntN(9)) * time.Millisecond}
			}
			c.Then, c.Now = calls(random(), random())
			cells = append(cells, c)
		}
		held := start
		if r.IntN(3) == 0 {
			held = start.Add(20 * time.Second)
		}
		in := gate.Input{Snapshot: 42, Wave: 2, Policy: policy(), Cells: cells, Held: held, Now: start.Add(30 * time.Second)}
		before := gate.Judge(in)
		in.Cells = slices.Clone(cells)
		for k := range in.Cells {
			if in.Cells[k].Reached {
				worse := *in.Cells[k].Now
				if n := r.Uint64N(200); r.IntN(2) == 0 {
					worse.Calls, worse.Failed = worse.Calls+n, worse.Failed+n // calls beside
				} else {
					worse.Failed += min(n, worse.Calls-worse.Failed) // calls that succeeded
				}
				worse.Took += time.Duration(r.IntN(int(time.Second)))
				in.Cells[k].Now = &worse
			}
		}
		after := gate.Judge(in)
		if before.Outcome == gate.Fail {
			failed++
		}
		if before.Outcome == gate.Fail && after.Outcome != gate.Fail {
			t.Fatalf("seed %d, step %d: %+v with fewer failures and %+v with more", seed, i, before, after)
		}
	}
	if failed == 0 {
		t.Error("no wave failed")
	}
}

func TestProxiesThatDie(t *testing.T) {
	start := time.Unix(1000, 0)
	policy := release.Complete(&configv1.ReleasePolicy{})
	cell := func(proxy string, gone bool) gate.Cell {
		roots := gate.Roots{Partition: ident.HashOf([]byte("new"))}
		return gate.Cell{
			Proxy: proxy, Wave: release.WaveFirst, Reached: true, Gone: gone, Wants: []gate.Roots{roots}, Serving: roots, Since: start, Seen: start,
		}
	}
	for name, c := range map[string]struct {
		cells  []gate.Cell
		lost   []string
		want   gate.Outcome
		reason string
	}{
		"one of several is chance":        {[]gate.Cell{cell("a", true), cell("b", false)}, []string{"a"}, gate.Pass, ""},
		"the only one is not":             {[]gate.Cell{cell("a", true)}, []string{"a"}, gate.Fail, "died after it had reached them: a"},
		"several are not":                 {[]gate.Cell{cell("c", false)}, []string{"a", "b"}, gate.Fail, "died after it had reached them: a, b"},
		"many are told in part":           {[]gate.Cell{cell("z", false)}, []string{"a", "b", "c", "d", "e", "f", "g"}, gate.Fail, "a, b, c, d, e (and 2 more)"},
		"those that drained are not lost": {[]gate.Cell{cell("a", true), cell("b", true), cell("c", false)}, nil, gate.Pass, ""},
	} {
		t.Run(name, func(t *testing.T) {
			now := start.Add(policy.GetSoak().AsDuration())
			for i := range c.cells {
				c.cells[i].Seen = now
			}
			v := gate.Judge(gate.Input{Snapshot: 1, Wave: release.WaveFirst, Policy: policy, Cells: c.cells, Lost: c.lost, Held: start, Now: now})
			if v.Outcome != c.want || !strings.Contains(v.Reason, c.reason) {
				t.Errorf("the verdict is %v: %q, want %v: %q", v.Outcome, v.Reason, c.want, c.reason)
			}
		})
	}
}
