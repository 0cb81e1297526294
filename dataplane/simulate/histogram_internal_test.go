package simulate

import (
	"testing"
	"time"
)

func TestQuantiles(t *testing.T) {
	times := func(of ...time.Duration) (h histogram) {
		for _, d := range of {
			h.add(d)
		}
		return h
	}
	thousand := histogram{}
	for i := range 1000 {
		thousand.add(time.Duration(i+1) * time.Millisecond)
	}
	for _, c := range []struct {
		name string
		of   histogram
		q    float64
		want time.Duration
	}{
		{"of nothing", histogram{}, 0.5, 0},
		{"of one it is that one", times(7 * time.Millisecond), 0.99, 7 * time.Millisecond},
		{"half of two is the smaller", times(time.Millisecond, time.Second), 0.5, time.Millisecond},
		{"nearly all of two is the larger", times(time.Millisecond, time.Second), 0.99, time.Second},
		{"half of many", thousand, 0.5, 500 * time.Millisecond},
		{"99 of 100", thousand, 0.99, 990 * time.Millisecond},
		{"below what is told apart", times(time.Nanosecond), 0.5, time.Nanosecond},
		{"clocks that differ are no time", times(-time.Second), 1, 0},
		{"no more than the largest", times(time.Millisecond, 1001*time.Microsecond), 1, 1001 * time.Microsecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.of.quantile(c.q)
			if got < c.want || got > time.Duration(growth*float64(c.want)) {
				t.Errorf("%v, want %v or at most 4 %% more", got, c.want)
			}
		})
	}
}

func TestASnapshotIsEverywhereWhenNothingMoreCame(t *testing.T) {
	committed := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return committed.Add(d) }
	c := newCounts(committed)
	c.effective(7, committed, at(2*time.Millisecond))
	c.effective(7, committed, at(5*time.Millisecond))
	c.effective(8, committed, at(time.Second))
	c.effective(9, time.Time{}, at(2*time.Second))
	c.mu.Lock()
	defer c.mu.Unlock()
	if got := c.settleLocked(at(time.Millisecond)); len(got) != 0 {
		t.Fatalf("settled %v although all is later", got)
	}
	got := c.settleLocked(at(5 * time.Millisecond))
	if len(got) != 1 || got[0] != (Spread{Snapshot: 7, Committed: committed, Cells: 2, First: at(2 * time.Millisecond), Last: at(5 * time.Millisecond)}) {
		t.Fatalf("settled %+v, want snapshot 7 with two cells, 2 and 5 ms", got)
	}
	if got := c.settleLocked(at(time.Minute)); len(got) != 2 || got[1].Snapshot != 9 || !got[1].Committed.IsZero() {
		t.Fatalf("settled %+v, want snapshots 8 and 9, this one without a commit", got)
	}
	if all := c.everywhere.latency(); all.Count != 2 || all.Max != 1 {
		t.Errorf("everywhere %+v, want twice, at most 1 s", all)
	}
	if each := c.cells.latency(); each.Count != 3 || each.Max != 1 {
		t.Errorf("each cell %+v, want three, at most 1 s", each)
	}
}
