package push

import (
	"cmp"
	"sync"

	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// history remembers the states that clients were brought away from last, for proxies that reconnect after having missed
// little.
type history struct {
	mu     sync.Mutex // guards the rest; held for a look into a map
	stored past       // of head and stable, which the store has for longer
	mixed  past       // of cells that some releases have reached, which nobody else has
}

func newHistory() *history { return &history{stored: past{room: 256}, mixed: past{room: 1024}} }

// past are the newest manifests, as many as there is room for.
type past struct {
	room   int
	byRoot map[ident.Hash]*manifest.Manifest
	order  []ident.Hash
}

func (h *history) keep(m *mark) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.findLocked(m.root()) != nil:
	case m.mixed:
		h.mixed.keep(m.manifest)
	default:
		h.stored.keep(m.manifest)
	}
}

// find returns the manifest of a root, nil when it is not remembered.
func (h *history) find(root ident.Hash) *manifest.Manifest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.findLocked(root)
}

func (h *history) findLocked(root ident.Hash) *manifest.Manifest {
	return cmp.Or(h.stored.byRoot[root], h.mixed.byRoot[root])
}

// keep takes one that is not known.
func (p *past) keep(m *manifest.Manifest) {
	if p.byRoot == nil {
		p.byRoot = map[ident.Hash]*manifest.Manifest{}
	}
	if len(p.order) == p.room {
		delete(p.byRoot, p.order[0])
		p.order = p.order[1:]
	}
	p.byRoot[m.Root()] = m
	p.order = append(p.order, m.Root())
}
