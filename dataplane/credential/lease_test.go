package credential_test

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestCR02RenewsAtHalfWithJitter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDouble(time.Hour, 24*time.Hour)
		s := start(t, d, nil)
		began := time.Now()
		h := acquire(t, s, "ann")
		first := h.Current()
		if first.Generation != 1 || !first.ExpiresAt.Equal(began.Add(time.Hour)) {
			t.Fatalf("generation %d until %v", first.Generation, first.ExpiresAt)
		}
		time.Sleep(61 * time.Minute)
		synctest.Wait()
		at := d.times("renew")
		if len(at) == 0 {
			t.Fatal("not renewed")
		}
		if after := at[0].Sub(began); after < 24*time.Minute || after > 36*time.Minute {
			t.Errorf("renewed after %v", after)
		}
		now := h.Current()
		if now == nil || now.Generation != 1 || !now.ExpiresAt.After(first.ExpiresAt) {
			t.Errorf("after a renewal: %v until %v", now, now.ExpiresAt)
		}
		select {
		case <-h.Changed():
			t.Error("a renewal is told as a change")
		default:
		}
		if err := h.Err(); err != nil {
			t.Error(err)
		}
	})
}
