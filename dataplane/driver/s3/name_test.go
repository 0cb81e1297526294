package s3

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// names are the longest, the shortest, and many at the lengths where the form of a name changes.
func names() [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	all := [][]byte{{}, {0}, {0, 0}, {0xff}, []byte("a"), []byte("a/b"), []byte("a-"), bytes.Repeat([]byte{0xff}, 1024), bytes.Repeat([]byte{0}, 1024)}
	for range 3000 {
		b := make([]byte, []int{1, 2, 3, 4, 10, 100, 179, 180, 181, 182, 359, 360, 361, 362, 363, 1023, 1024}[r.IntN(17)])
		for n := range b {
			b[n] = byte("\x00a/\xff"[r.IntN(4)])
		}
		if other := all[r.IntN(len(all))]; r.IntN(2) == 0 { // with the beginning of another
			copy(b, other)
		}
		all = append(all, b)
	}
	return all
}

func TestNamesAreWithinWhatStoresTake(t *testing.T) {
	i := &Instance{prefix: strings.Repeat("p", 64) + "/"}
	space := driver.Space(strings.Repeat("n", 63) + ".zzzzzzzzzzzzz")
	for _, b := range names() {
		object := i.object(space, driver.Name{ID: append([]byte{'i'}, b[:min(len(b), 1023)]...), Key: b})
		if len(object) > maxName {
			t.Fatalf("%d bytes: the name has %d", len(b), len(object))
		}
		for segment := range strings.SplitSeq(object, "/") {
			if len(segment) > 255 || segment == "" || segment == "." || segment == ".." {
				t.Fatalf("segment %q", segment)
			}
		}
	}
}

func TestNamesKeepTheOrderOfKeys(t *testing.T) {
	all := names()
	slices.SortFunc(all, bytes.Compare)
	for n, b := range all {
		key, long, err := keyOf(keyPath(b))
		if err != nil || long != (len(b) > plainKey) || !bytes.Equal(key, b[:min(len(b), plainKey)]) {
			t.Fatalf("%q became %q, %v, %v", b, key, long, err)
		}
		if n == 0 || bytes.Equal(b, all[n-1]) {
			continue
		}
		before := all[n-1]
		alike := len(before) > plainKey && long && bytes.Equal(before[:plainKey], b[:plainKey])
		if !alike && keyPath(before) >= keyPath(b) {
			t.Fatalf("%q is before %q, but %q is not before %q", before, b, keyPath(before), keyPath(b))
		}
		if keyPath(before) == keyPath(b) {
			t.Fatalf("%q and %q have one name", before, b)
		}
		// What a listing starts after is before the key, and not before the one before it unless that is its beginning.
		begins := long && bytes.Equal(before, b[:plainKey])
		if after := keySegments(b); after >= keyPath(b) || !alike && !begins && after < keyPath(before) {
			t.Fatalf("a listing that starts with %q starts after %q, which is wrong", b, after)
		}
	}
}

func TestNamesOfOthersAreNotTaken(t *testing.T) {
	for _, path := range []string{"", "k", "-", "x-", "k0-", "k00/-", "k/00-", "k!!-", keyPath([]byte("a")) + "-", keyPath([]byte("a")) + "/x", "k00/~abc-",
		keySegments(make([]byte, 400)) + restOfKey + "abc" + endOfKey} {
		if key, _, err := keyOf(path); err == nil {
			t.Errorf("%q is taken for the key %q", path, key)
		}
	}
	for _, segment := range []string{"", "i", "h", "habc", "x00", "i0", "i!!"} {
		if id, err := idOf(segment); err == nil {
			t.Errorf("%q is taken for the id %q", segment, id)
		}
	}
	for _, id := range [][]byte{{0}, []byte("a"), make([]byte, plainID)} {
		if got, err := idOf(idSegment(id)); err != nil || !bytes.Equal(got, id) {
			t.Errorf("%q became %q, %v", id, got, err)
		}
	}
	if got, err := idOf(idSegment(make([]byte, plainID+1))); err != nil || got != nil {
		t.Errorf("a long id became %q, %v", got, err)
	}
}
