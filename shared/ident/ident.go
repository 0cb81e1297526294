// Package ident holds the names that both planes use: slots, partitions, hashes.
package ident

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

var slotName = regexp.MustCompile(`^([a-z][a-z0-9]*)-([a-z][a-z0-9]*)$`)

// Slot is the name of a slot, {purpose}-{type}.
type Slot struct{ purpose, backend string }

// ParseSlot takes a name such as storage-redis.
func ParseSlot(s string) (Slot, error) {
	m := slotName.FindStringSubmatch(s)
	if m == nil {
		return Slot{}, fmt.Errorf("slot %q: want {purpose}-{type}, such as storage-redis", s)
	}
	return Slot{purpose: m[1], backend: m[2]}, nil
}

// Purpose is what the slot is for: storage, broker.
func (s Slot) Purpose() string { return s.purpose }

// BackendType is the type of backend that the slot asks for: redis, kafka.
func (s Slot) BackendType() string { return s.backend }

// String returns the name.
func (s Slot) String() string { return s.purpose + "-" + s.backend }

// Partition is a hash bucket of namespaces.
type Partition uint32

// PartitionOf returns the partition of a namespace where there are count of them. The name need not be well-formed.
func PartitionOf(namespace string, count uint32) Partition {
	return Partition(xxhash.Sum64String(namespace) % uint64(count))
}

// ParsePartition takes the form that String gives.
func ParsePartition(s string) (Partition, error) {
	digits, ok := strings.CutPrefix(s, "p/")
	n, err := strconv.ParseUint(digits, 10, 32)
	if !ok || err != nil || Partition(n).String() != s {
		return 0, fmt.Errorf("partition %q: want p/ and four or more digits", s)
	}
	return Partition(n), nil
}

// String returns the form p/0123, which is the name of the partition's collection.
func (p Partition) String() string { return fmt.Sprintf("p/%04d", uint32(p)) }

// Hash is a SHA-256. The zero value stands for nothing: an absent object, an empty collection.
type Hash [sha256.Size]byte

// HashOf hashes data.
func HashOf(data []byte) Hash { return sha256.Sum256(data) }

// ParseHash takes 64 hexadecimal digits; the empty text is the zero hash.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if s == "" {
		return h, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return Hash{}, fmt.Errorf("hash %q: want %d hexadecimal digits", s, 2*len(h))
	}
	copy(h[:], b)
	return h, nil
}

// HashFrom takes 32 bytes; none is the zero hash.
func HashFrom(b []byte) (Hash, error) {
	var h Hash
	if len(b) == 0 {
		return h, nil
	}
	if len(b) != len(h) {
		return h, fmt.Errorf("hash of %d bytes: want %d", len(b), len(h))
	}
	copy(h[:], b)
	return h, nil
}

// IsZero reports whether h stands for nothing.
func (h Hash) IsZero() bool { return h == Hash{} }

// String returns 64 hexadecimal digits, or nothing for the zero hash.
func (h Hash) String() string {
	if h.IsZero() {
		return ""
	}
	return hex.EncodeToString(h[:])
}

// Bytes returns a copy as a slice, nil for the zero hash.
func (h Hash) Bytes() []byte {
	if h.IsZero() {
		return nil
	}
	return append([]byte(nil), h[:]...)
}
