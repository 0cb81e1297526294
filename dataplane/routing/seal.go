package routing

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// Seal notes what the route is. Whoever makes a route does so when it is complete.
func (r *Route) Seal() {
	r.seal = r.digest()
	r.gone = make(chan struct{})
}

// Intact reports whether the route is what it was when it was sealed: a route does not change, unless memory is damaged.
func (r *Route) Intact() bool { return r.seal == r.digest() }

// digest is over all that calls go by, except the limits, which follow the number of owners.
func (r *Route) digest() uint64 {
	var space [512]byte
	b := space[:0]
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	flag := func(f bool) {
		if f {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	text(r.Namespace)
	text(r.Version)
	flag(r.Draining)
	flag(r.SingleOwner)
	b = binary.AppendVarint(b, int64(r.DefaultDeadline))
	b = binary.AppendVarint(b, int64(r.MaxDeadline))
	b = binary.AppendUvarint(b, uint64(r.Rate))
	b = binary.AppendUvarint(b, uint64(r.Concurrency))
	text(r.Config.Name)
	b = append(b, r.Config.Hash[:]...)
	for _, o := range r.Backends {
		text(o.Name)
		b = append(b, o.Hash[:]...)
	}
	if kv := r.KeyValue; kv != nil {
		text(string(kv.Space()))
		b = binary.AppendVarint(b, int64(kv.Consistency()))
		b = binary.AppendVarint(b, int64(kv.DefaultTTL()))
		b = binary.AppendVarint(b, int64(kv.MaxStaleness()))
		b = binary.AppendUvarint(b, kv.MaxValueBytes())
		for _, name := range kv.Interfaces() {
			text(name)
		}
	}
	return xxhash.Sum64(b)
}
