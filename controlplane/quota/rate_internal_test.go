package quota

import (
	"fmt"
	"testing"
	"time"
)

func TestTeamsAreForgottenOnceTheirBucketsAreFull(t *testing.T) {
	var r Rates
	b := Bounds{ChangesPerMinute: 60} // ten at once, one more each second
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	take := func(team string, n int, now time.Time) {
		t.Helper()
		if err := r.Take(team, b, n, now); err != nil {
			t.Fatal(err)
		}
	}
	take("in-debt-for-long", 1000, now)
	for i := range maxIdle - 1 {
		take(fmt.Sprint("in-debt-", i), 20, now)
	}
	take("next", 1, now.Add(5*time.Second))
	if got := len(r.teams); got != maxIdle+1 {
		t.Errorf("%d teams are remembered before any bucket is full, want %d", got, maxIdle+1)
	}
	take("later", 1, now.Add(2*time.Minute))
	if got := len(r.teams); got != 2 {
		t.Errorf("%d teams are remembered, want the one in debt and the new one", got)
	}
	if err := r.Take("in-debt-for-long", b, 1, now.Add(2*time.Minute)); err == nil {
		t.Error("a debt was forgotten")
	}
}
