package driver

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
)

// Refusal is the fault of a write that may not be done, or nil. current is the version of the visible item, nil when
// there is none.
func (w Write) Refusal(current []byte) error {
	switch {
	case w.Condition == IfAbsent && current != nil:
		return fault.New(fault.Exists, fault.Key, "the key has an item already").WithOutcome(fault.NotApplied)
	case w.Condition == IfPresent && current == nil, w.Op == Touch && w.Condition != IfVersion && current == nil:
		return fault.New(fault.NotFound, fault.KeyRequired, "the key has no item").WithOutcome(fault.NotApplied)
	case w.Condition == IfVersion && current == nil:
		return fault.New(fault.Conflict, fault.VersionMismatch, "the key has no item").WithOutcome(fault.NotApplied)
	case w.Condition == IfVersion && !bytes.Equal(w.Version, current):
		return fault.New(fault.Conflict, fault.VersionMismatch, "the item has another version").
			With("version", base64.StdEncoding.EncodeToString(current)).WithOutcome(fault.NotApplied)
	}
	return nil
}

// ExpireMillis is t in milliseconds since 1970, rounded up, as stores keep it; 0 for never. Times after the year
// 140,000 count as that.
func ExpireMillis(t time.Time) int64 {
	const last = 1 << 52
	if t.IsZero() {
		return 0
	}
	if t.Unix() > last/1000 {
		return last
	}
	ms := t.UnixMilli()
	if t.Nanosecond()%int(time.Millisecond) != 0 {
		ms++
	}
	return max(ms, 1)
}

// ExpireTime is the time of ExpireMillis.
func ExpireTime(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Expired reports whether an item that expires at ms is gone at now.
func Expired(ms int64, now time.Time) bool {
	return ms != 0 && now.UnixMilli() >= ms
}

// Versions makes versions that never repeat: a random part of its own and a count. It may be used concurrently.
type Versions struct {
	open [8]byte
	n    atomic.Uint64
}

// VersionSize is the length of what Versions makes.
const VersionSize = 16

// NewVersions begins a run of versions.
func NewVersions() *Versions {
	v := &Versions{}
	rand.Read(v.open[:])
	return v
}

// Next returns a version that no one else gets.
func (v *Versions) Next() []byte {
	b := make([]byte, VersionSize)
	copy(b, v.open[:])
	binary.BigEndian.PutUint64(b[8:], v.n.Add(1))
	return b
}
