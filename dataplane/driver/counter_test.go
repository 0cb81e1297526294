package driver_test

import (
	"math"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func TestSum(t *testing.T) {
	for name, c := range map[string]struct {
		inc    driver.Increment
		value  string
		there  bool
		want   int64
		reason fault.Reason
	}{
		"absent begins at initial":  {inc: driver.Increment{Delta: 2, Initial: 40}, want: 42},
		"present":                   {inc: driver.Increment{Delta: -3, Initial: 40}, value: "1", there: true, want: -2},
		"to the largest":            {inc: driver.Increment{Delta: 1}, value: "9223372036854775806", there: true, want: math.MaxInt64},
		"over the largest":          {inc: driver.Increment{Delta: 1}, value: "9223372036854775807", there: true, reason: fault.Counter},
		"to the smallest":           {inc: driver.Increment{Delta: math.MinInt64}, value: "0", there: true, want: math.MinInt64},
		"under the smallest":        {inc: driver.Increment{Delta: -1}, value: "-9223372036854775808", there: true, reason: fault.Counter},
		"initial over the largest":  {inc: driver.Increment{Delta: 1, Initial: math.MaxInt64}, reason: fault.Counter},
		"empty is no number":        {there: true, reason: fault.NotACounter},
		"a plus sign is no number":  {value: "+1", there: true, reason: fault.NotACounter},
		"zeros in front are none":   {value: "01", there: true, reason: fault.NotACounter},
		"minus zero is none":        {value: "-0", there: true, reason: fault.NotACounter},
		"a space is none":           {value: "1 ", there: true, reason: fault.NotACounter},
		"more than 64 bits is none": {value: "9223372036854775808", there: true, reason: fault.NotACounter},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.inc.Sum([]byte(c.value), c.there)
			if c.reason != "" {
				if !fault.Is(err, c.reason) || fault.From(err).Outcome != fault.NotApplied {
					t.Errorf("got %d, %v, want reason %s, not applied", got, err, c.reason)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %d, %v, want %d", got, err, c.want)
			}
			if n, ok := driver.ParseNumber(driver.FormatNumber(got)); !ok || n != got {
				t.Errorf("%d is not read back", got)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	v := []byte("v1")
	for name, c := range map[string]struct {
		check   driver.Check
		current []byte
		holds   bool
	}{
		"absent, and it is":       {driver.Check{Condition: driver.IfAbsent}, nil, true},
		"absent, and it is there": {driver.Check{Condition: driver.IfAbsent}, v, false},
		"present, and it is":      {driver.Check{Condition: driver.IfPresent}, v, true},
		"present, and it is not":  {driver.Check{Condition: driver.IfPresent}, nil, false},
		"that version":            {driver.Check{Condition: driver.IfVersion, Version: v}, v, true},
		"another version":         {driver.Check{Condition: driver.IfVersion, Version: []byte("v2")}, v, false},
		"a version of none":       {driver.Check{Condition: driver.IfVersion, Version: v}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.check.Failed(c.current, 7)
			if c.holds {
				if err != nil {
					t.Error(err)
				}
				return
			}
			f := fault.From(err)
			if !fault.Is(err, fault.CheckFailed) || f.Metadata["index"] != "7" || (f.Metadata["version"] != "") != (c.current != nil) {
				t.Errorf("got %v with %v", err, f.Metadata)
			}
		})
	}
}
