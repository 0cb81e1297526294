package driver

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
)

// Counter is the capability keyvalue.counter: items whose value is a whole number, which other writes see as text.
type Counter interface {
	// Increment adds to an item's number and keeps its content type and metadata. An expired item counts as absent.
	Increment(ctx context.Context, space Space, i Increment) (Incremented, error)
}

// Increment is one addition.
type Increment struct {
	Name
	Delta int64
	// Initial is what an absent item counts as.
	Initial int64
	// ExpireAt and KeepExpiry are as those of a Write.
	ExpireAt   time.Time
	KeepExpiry bool
	// Token is for keyvalue.idempotency; nil: none.
	Token *Token
}

// Incremented is what an addition did.
type Incremented struct {
	Value int64 // the sum
	Written
}

// Sum is the number after i. value is that of the visible item, if there is one: a decimal number of 64 bits as FormatNumber
// writes it, else the fault is NotACounter. A sum that 64 bits cannot hold is fault OutOfRange, reason COUNTER.
func (i Increment) Sum(value []byte, there bool) (int64, error) {
	n := i.Initial
	if there {
		var ok bool
		if n, ok = ParseNumber(value); !ok {
			return 0, NotACounter()
		}
	}
	if (i.Delta > 0 && n > math.MaxInt64-i.Delta) || (i.Delta < 0 && n < math.MinInt64-i.Delta) {
		return 0, Overflow()
	}
	return n + i.Delta, nil
}

// FormatNumber is a counter's value: decimal, without a plus sign or zeros in front.
func FormatNumber(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

// ParseNumber reads what FormatNumber writes, and nothing else.
func ParseNumber(value []byte) (int64, bool) {
	if len(value) == 0 || len(value) > len("-9223372036854775808") {
		return 0, false
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	return n, err == nil && string(FormatNumber(n)) == string(value)
}

// NotACounter is the fault of adding to a value that is no number.
func NotACounter() error {
	return fault.New(fault.FailedPrecondition, fault.NotACounter, "the item's value is no whole number").WithOutcome(fault.NotApplied)
}

// Overflow is the fault of a sum that 64 bits cannot hold.
func Overflow() error {
	return fault.New(fault.OutOfRange, fault.Counter, "the sum does not fit into 64 bits").WithOutcome(fault.NotApplied)
}
