package push

import (
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// Resync has a partition sent in full to a proxy, whatever it has of it. It reports whether the proxy has a stream here
// that subscribes to the partition.
func (s *Server) Resync(node string, p ident.Partition) bool {
	found := false
	for _, session := range s.subscribers(p) {
		if session.node == node {
			session.namespaces.again(cell(p))
			found = true
		}
	}
	return found
}

// again has a collection sent in full.
func (f *feed) again(c cell) {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.anew.add(c)
	f.dirty.add(c)
	f.sendLocked()
}

// begin forgets what the client has of collections that are sent in full. The shared set it has all the same.
func (f *feed) begin(anew cells) {
	for _, c := range anew {
		if h := f.holds(c); h != nil {
			*h = holding{cell: c, at: &mark{cell: c, manifest: manifest.Empty, shared: h.at.shared}, kept: h.kept, full: true}
		}
	}
}
