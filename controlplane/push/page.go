package push

import (
	"context"
	"fmt"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"

	"github.com/prism-gateway/prism/shared/ident"
)

// pageBytes bounds a response, but for one resource that is larger by itself. It is what a client that does not read
// has the server hold.
const pageBytes = 128 << 10

// page is a response being made.
type page struct {
	shown    *state
	response *discoveryv3.DeltaDiscoveryResponse
	bytes    int
	ends     []*mark
}

// fits reports whether there is room; the first always has it.
func (p *page) fits(bytes int) bool { return p.bytes == 0 || p.bytes+bytes <= pageBytes }

func (p *page) add(r *discoveryv3.Resource, bytes int) {
	p.response.Resources = append(p.response.Resources, r)
	p.bytes += bytes
}

// take adds as many resources as there is room for, and returns how many those are.
func (p *page) take(resources []*discoveryv3.Resource, sizes []int) (n int) {
	for n < len(resources) && p.fits(sizes[n]) {
		p.add(resources[n], sizes[n])
		n++
	}
	return n
}

func (p *page) remove(names []string) {
	p.response.RemovedResources = append(p.response.RemovedResources, names...)
	for _, name := range names {
		p.bytes += len(name) + 4
	}
}

// GetDeltaDiscoveryResponse makes the response, from the newest state there is.
func (f *feed) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	f.session.mu.Lock()
	must, look, anew := f.must, f.dirty, f.anew
	if f.all {
		look = f.cells()
	}
	f.queued, f.armed, f.must = false, false, false
	f.all, f.dirty, f.anew = false, nil, nil
	f.session.mu.Unlock()

	f.begin(anew)
	p := &page{
		shown:    f.session.server.shown.Load(),
		response: &discoveryv3.DeltaDiscoveryResponse{TypeUrl: f.typeURL, RemovedResources: f.gone},
	}
	f.gone = nil
	for i, c := range look {
		done, err := f.fill(p, c)
		if err != nil {
			return nil, err
		}
		if !done {
			f.later(look[i:])
			break
		}
	}
	f.ends = p.ends
	nothing := len(p.response.GetResources()) == 0 && len(p.response.GetRemovedResources()) == 0
	// The answer that all is as it was waits for the shared sets that say so.
	f.silent = nothing && (!must || len(f.waiting) > 0)
	f.session.mu.Lock()
	f.must = must && f.silent
	f.session.mu.Unlock()
	return p.response, nil
}

// cells are those that are subscribed to.
func (f *feed) cells() cells {
	all := make(cells, len(f.have))
	for i, h := range f.have {
		all[i] = h.cell
	}
	return all
}

// later has cells looked at again, in another response.
func (f *feed) later(rest cells) {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	for _, c := range rest {
		f.dirty.add(c)
	}
}

// target is what the client is to have of a cell.
func (f *feed) target(shown *state, c cell) target {
	if c == sharedCell {
		return f.session.nextSet(shown)
	}
	view := shown.view(f.session.node, ident.Partition(c))
	return target{collection: view.Partition, shared: view.Shared, snapshot: view.Snapshot}
}

// fill adds to a page what the stream lacks of a cell, and reports whether that was all.
func (f *feed) fill(p *page, c cell) (bool, error) {
	h := f.holds(c)
	if h == nil {
		return true, nil // no longer wanted
	}
	if c == fleetCell {
		if o := p.shown.owners; o != nil && o.resource.GetVersion() != f.version {
			p.add(o.resource, o.size)
			f.version = o.resource.GetVersion()
		}
		return true, nil
	}
	t := f.target(p.shown, c)
	same := h.at.root() == t.collection.Root()
	if same && h.complete && h.at.shared == t.sharedRoot() {
		return true, nil
	}
	if c != sharedCell && f.session.lacks(t.sharedRoot()) {
		f.session.fetch(c)
		return true, nil
	}
	end, err := p.shown.ending(c, t, h.full)
	if err != nil {
		return false, err
	}
	d := unchanged
	if !same {
		if d, err = f.session.server.diffs.get(h.at.manifest, t.collection, c); err != nil {
			return false, err
		}
	}
	sent := p.take(d.set, d.sizes)
	if sent == 0 && (len(d.set) > 0 || !p.fits(end.size)) {
		return false, nil
	}
	p.remove(d.removed)
	if h.complete && !same {
		f.session.server.history.keep(h.at)
	}
	if sent < len(d.set) {
		return false, h.advance(d, sent)
	}
	p.add(end.sentinel, end.size) // whether it fits or not
	p.ends = append(p.ends, end.mark)
	*h = holding{cell: c, at: end.mark, complete: true}
	if c == sharedCell {
		return f.session.sentSet(p.shown, end.root()), nil
	}
	h.kept = f.session.shared.holds(sharedCell) != nil
	return true, nil
}

// advance notes that only the first resources of a difference were sent, and all that it removes.
func (h *holding) advance(d *difference, sent int) error {
	changes := make(map[string]ident.Hash, sent+len(d.removed))
	for i, r := range d.set[:sent] {
		changes[r.GetName()] = d.hashes[i]
	}
	for _, name := range d.removed {
		changes[name] = ident.Hash{}
	}
	m, err := h.at.manifest.With(changes)
	if err != nil {
		return fmt.Errorf("a page's state: %w", err)
	}
	h.at, h.complete = &mark{cell: h.cell, manifest: m, shared: h.at.shared}, false
	return nil
}

// GetDeltaRequest says the type that the response is of.
func (f *feed) GetDeltaRequest() *cache.DeltaRequest { return f.request }

// GetReturnedResources is for caches that keep a stream's state in the server; it must not be nil.
func (f *feed) GetReturnedResources() map[string]string { return map[string]string{} }

// GetNextVersionMap is the older name of GetReturnedResources.
func (f *feed) GetNextVersionMap() map[string]string { return f.GetReturnedResources() }

// GetResponseVersion is for debugging.
func (f *feed) GetResponseVersion() string { return "" }

// GetSystemVersion is the older name of GetResponseVersion.
func (f *feed) GetSystemVersion() (string, error) { return "", nil }

// GetContext is the stream's.
func (f *feed) GetContext() context.Context { return f.session.ctx }
