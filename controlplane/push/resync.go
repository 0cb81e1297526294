package push

import (
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// Resync has a partition sent in full to a proxy, whatever it has of it. It reports whether the proxy has a stream here
// that subscribes to the partition.
func (s *Server) Resync(node string, p ident.Partition) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := false
	for session := range s.partitions[p] {
		if session.node == node {
			session.namespaces.again(p.String())
			found = true
		}
	}
	return found
}

// again has a collection sent in full.
func (f *feed) again(name string) {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	if f.anew == nil {
		f.anew = map[string]struct{}{}
	}
	f.anew[name] = struct{}{}
	f.markLocked(name)
	f.sendLocked()
}

// begin forgets what the client has of collections that are sent in full. The shared set it has all the same.
func (f *feed) begin(anew map[string]struct{}) {
	for name := range anew {
		if h := f.have[name]; h != nil {
			*h = holding{manifest: manifest.Empty, shared: h.shared, kept: h.kept, full: true}
		}
	}
}
