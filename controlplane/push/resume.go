package push

import (
	"context"
	"strings"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// resume says what the proxy came with of a collection: the state of a root, or single resources, or nothing that is
// known here, so that all is sent and what is not sent is gone.
func (f *feed) resume(ctx context.Context, c cell, initial map[string]string, members []manifest.Entry) holding {
	version, ok := initial[c.String()]
	if c == fleetCell {
		f.version = version
		return holding{cell: c}
	}
	if ok {
		if h, ok := f.resumeRoot(ctx, c, version); ok {
			return h
		}
	}
	if m, err := manifest.New(members); err == nil && len(members) > 0 {
		return holding{cell: c, at: &mark{cell: c, manifest: m}}
	}
	return holding{cell: c, at: &mark{cell: c, manifest: manifest.Empty}, full: true}
}

// resumeRoot takes the version that a proxy has of a collection: its root in hex. A partition's may be followed by a slash
// and the shared root it is in effect with; else that is the one that the proxy came with, and if it came with none, the
// sentinel is sent again. It is false when the root is not known.
func (f *feed) resumeRoot(ctx context.Context, c cell, version string) (holding, bool) {
	s := f.session
	text, sharedText, explicit := strings.Cut(version, "/")
	root, ok := parseRoot(text)
	if !ok {
		return holding{}, false
	}
	m, ok := s.server.manifestOf(ctx, f.target(s.server.shown.Load(), c).collection, root)
	if !ok {
		return holding{}, false
	}
	at := &mark{cell: c, manifest: m}
	h := holding{cell: c, at: at, complete: true}
	if c == sharedCell {
		s.sets = []ident.Hash{root}
	} else {
		at.shared, h.complete = s.claim, s.claimed
		if explicit {
			at.shared, h.complete = parseRoot(sharedText)
		}
	}
	s.server.tracker.resumed(s.tracked, at)
	return h, true
}

// members sorts the single resources that the proxy came with by collection.
func (f *feed) members(initial map[string]string) map[cell][]manifest.Entry {
	var by map[cell][]manifest.Entry
	for name, version := range initial {
		hash, err := ident.ParseHash(version)
		if err != nil || hash.IsZero() || !strings.Contains(name, "/") || strings.HasPrefix(name, "p/") {
			continue
		}
		c := sharedCell
		if namespace, ok := strings.CutPrefix(name, snapshot.NamespacePrefix); ok {
			c = cell(ident.PartitionOf(namespace, f.session.server.shown.Load().partitions()))
		}
		if by == nil {
			by = map[cell][]manifest.Entry{}
		}
		by[c] = append(by[c], manifest.Entry{Name: name, Hash: hash})
	}
	return by
}

func parseRoot(version string) (ident.Hash, bool) {
	root, err := ident.ParseHash(version)
	return root, err == nil
}
