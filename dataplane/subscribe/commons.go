package subscribe

import (
	"bytes"
	"runtime"
	"sync"
	"weak"

	"github.com/prism-gateway/prism/shared/ident"
)

// Commons is what several clients of one process keep only once: states of collections and assignments that more than one
// of them was sent. Each client still verifies what it is sent. What no client has any more is not kept. It may be used
// from any goroutine.
type Commons struct {
	versions    common[version]
	assignments common[assignment]
}

// NewCommons makes one that is empty.
func NewCommons() *Commons {
	return &Commons{
		versions:    common[version]{by: map[ident.Hash]weak.Pointer[version]{}},
		assignments: common[assignment]{by: map[ident.Hash]weak.Pointer[assignment]{}},
	}
}

// version returns a version equal to v, which was verified, with the contents that another client keeps already. Without
// commons it is v.
func (c *Commons) version(v *version) *version {
	if c == nil {
		return v
	}
	if known := c.versions.get(v.root()); known != nil {
		if bytes.Equal(known.encoded, v.encoded) {
			return known
		}
		v.manifest, v.members = known.manifest, known.members // the same root: the same contents
	}
	c.versions.put(v.root(), v) // the newest lives longest
	return v
}

// assignment is parseAssignment, done once for the same bytes.
func (c *Commons) assignment(encoded []byte, version string) (*assignment, error) {
	if c == nil {
		return parseAssignment(encoded, version)
	}
	hash := ident.HashOf(encoded)
	if known := c.assignments.get(hash); known != nil && known.version == version {
		return known, nil
	}
	a, err := parseAssignment(encoded, version)
	if err == nil {
		c.assignments.put(hash, a)
	}
	return a, err
}

// common finds values by their hash for as long as somebody else refers to them.
type common[T any] struct {
	mu sync.Mutex // guards by
	by map[ident.Hash]weak.Pointer[T]
}

func (c *common[T]) get(hash ident.Hash) *T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[hash].Value()
}

func (c *common[T]) put(hash ident.Hash, value *T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[hash] = weak.Make(value)
	runtime.AddCleanup(value, c.forget, hash)
}

// forget drops an entry whose value is gone, unless another has taken its place.
func (c *common[T]) forget(hash ident.Hash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by[hash].Value() == nil {
		delete(c.by, hash)
	}
}
