package release

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/prism-gateway/prism/shared/ident"
)

// The waves. A release begins before the first of them.
const (
	WaveValidators = 1 // the validators
	WaveFirst      = 2 // rank 0 of the first partitions
	WaveRank0      = 3 // rank 0
	WaveRank1      = 4 // rank 1
	WaveAll        = 5 // everybody

	// Waves is how many there are.
	Waves = WaveAll
)

// WaveName says what a wave is, for people.
func WaveName(wave int) string {
	switch wave {
	case WaveValidators:
		return "validators"
	case WaveFirst:
		return "rank 0 of the first partitions"
	case WaveRank0:
		return "rank 0"
	case WaveRank1:
		return "rank 1"
	case WaveAll:
		return "everybody"
	}
	return "none yet"
}

// First chooses the partitions whose rank 0 comes first: so many percent of those concerned, but at least one. Which
// they are depends on the snapshot, so that it is not always the same namespaces that are first. They are in order.
func First(snapshot uint64, concerned []ident.Partition, percent uint32) []ident.Partition {
	if len(concerned) == 0 {
		return nil
	}
	chosen := slices.Clone(concerned)
	slices.SortFunc(chosen, func(a, b ident.Partition) int {
		return cmp.Or(cmp.Compare(lot(snapshot, a), lot(snapshot, b)), cmp.Compare(a, b))
	})
	n := (len(chosen)*int(min(percent, 100)) + 99) / 100
	chosen = chosen[:max(1, n)]
	slices.Sort(chosen)
	return chosen
}

func lot(snapshot uint64, p ident.Partition) uint64 {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], snapshot)
	binary.BigEndian.PutUint32(b[8:], uint32(p))
	return xxhash.Sum64(b[:])
}
