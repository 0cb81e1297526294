package driver_test

import (
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
)

func TestExpiryIsRoundedUpToMilliseconds(t *testing.T) {
	for name, c := range map[string]struct {
		at   time.Time
		want int64
	}{
		"never":             {time.Time{}, 0},
		"exact":             {time.UnixMilli(1500), 1500},
		"a nanosecond over": {time.UnixMilli(1500).Add(1), 1501},
		"before 1970":       {time.UnixMilli(-5), 1},
		"year 9999":         {time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), 253402300799000},
		"far away":          {time.Unix(1<<60, 0), 1 << 52},
	} {
		if got := driver.ExpireMillis(c.at); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if !driver.ExpireTime(0).IsZero() || !driver.ExpireTime(1500).Equal(time.UnixMilli(1500)) {
		t.Error("ExpireTime is not the inverse of ExpireMillis")
	}
	at := time.UnixMilli(1500)
	if driver.Expired(1500, at.Add(-1)) || !driver.Expired(1500, at) || driver.Expired(0, at.AddDate(1000, 0, 0)) {
		t.Error("an item is visible before its expiry, and not at it")
	}
}

func TestVersionsNeverRepeat(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		v := driver.NewVersions()
		for range 100 {
			next := string(v.Next())
			if len(next) != driver.VersionSize || seen[next] {
				t.Fatalf("%x again", next)
			}
			seen[next] = true
		}
	}
}
