package push

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// feed is a stream's subscription to one type, and the response to it: what a response holds is decided when it is about
// to be sent.
type feed struct {
	session *session
	typeURL string
	request *cache.DeltaRequest // only says the type

	have     map[string]*holding // what is subscribed to
	gone     []string            // subscribed to and not there, to be told
	strange  int                 // how many such names there were
	waiting  map[string]struct{} // partitions that wait for a shared set
	started  bool                // whether there was a request
	inFlight string              // nonce of the response that waits for its acknowledgement
	ends     []end               // what that response completes

	sentAt atomic.Int64 // when the response in flight was sent, in Unix nanoseconds; 0 when none is

	// Guarded by session.mu.
	responses chan cache.DeltaResponse
	armed     bool                // a response may be queued
	queued    bool                // a response is queued
	must      bool                // answer although there is nothing
	silent    bool                // the response just made says nothing and need not be sent
	dirty     map[string]struct{} // what has to be looked at
	anew      map[string]struct{} // of dirty: what is sent in full whatever the client has
}

// holding is what the stream has of one collection.
type holding struct {
	manifest *manifest.Manifest
	shared   ident.Hash // for a partition: the shared root it was told with
	complete bool       // the last that was sent was the sentinel of this state
	kept     bool       // the client has the shared set and keeps it for this state
	full     bool       // everything is being sent anew
	version  string     // of the assignment, which is no collection
}

// end is a collection's new state, which a response completes.
type end struct {
	cell     cell
	shared   ident.Hash
	manifest *manifest.Manifest
}

func newFeed(s *session, typeURL string) *feed {
	return &feed{
		session: s, typeURL: typeURL, request: &cache.DeltaRequest{TypeUrl: typeURL},
		have: map[string]*holding{},
	}
}

func (f *feed) label() string {
	switch f.typeURL {
	case AssignmentType:
		return "assignment"
	case SharedType:
		return "shared"
	case NamespaceType:
		return "namespace"
	}
	return "unknown"
}

// wake says that what the feed has of name may be old.
func (f *feed) wake(name string) {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.markLocked(name)
	f.sendLocked()
}

func (f *feed) markLocked(name string) {
	if f.dirty == nil {
		f.dirty = map[string]struct{}{}
	}
	f.dirty[name] = struct{}{}
}

// sendLocked queues a response when there is something to say and nothing in its way.
func (f *feed) sendLocked() {
	if f.armed && !f.queued && (f.must || len(f.dirty) > 0) {
		f.queued = true
		f.responses <- f
	}
}

// rearm takes back that a response was made.
func (f *feed) rearm() {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.armed = true
	if len(f.dirty) > 0 { // what a first answer waits for marks something
		f.sendLocked()
	}
}

// disarm is called before the next request and before the channel is closed.
func (f *feed) disarm() {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.armed = false
}

// acknowledge takes what a request says of the response before.
func (f *feed) acknowledge(request *cache.DeltaRequest) {
	if request.GetResponseNonce() == "" || request.GetResponseNonce() != f.inFlight {
		return
	}
	f.inFlight = ""
	f.sentAt.Store(0)
	s := f.session
	rejections, whole := rejectionsOf(request.GetErrorDetail())
	if request.GetErrorDetail() != nil {
		s.server.metrics.nacks.WithLabelValues(f.label()).Inc()
		s.server.log.Warn("a proxy refuses configuration",
			"proxy", s.node, "type", f.label(), "resources", len(rejections), "reason", request.GetErrorDetail().GetMessage())
	}
	by := f.rejected(rejections)
	s.server.tracker.answered(s, s.node, f.ends, by, whole)
	f.object(by, whole)
	f.ends = nil
}

// rejected sorts rejections by the collections they belong to. What is neither a namespace nor a partition that the
// stream has, such as a backend that partitions came to use, belongs to the partitions that the response completed.
func (f *feed) rejected(rejections []*configv1.Rejection) map[cell][]*configv1.Rejection {
	if len(rejections) == 0 {
		return nil
	}
	completed := []cell{sharedCell}
	if f.typeURL == NamespaceType && len(f.ends) > 0 {
		completed = nil
		for _, e := range f.ends {
			completed = append(completed, e.cell)
		}
	}
	by := map[cell][]*configv1.Rejection{}
	for _, r := range rejections {
		collection := r.GetResource()
		if namespace, ok := strings.CutPrefix(collection, snapshot.NamespacePrefix); ok {
			collection = ident.PartitionOf(namespace, f.session.server.shown.Load().partitions()).String()
		}
		to := completed
		if f.have[collection] != nil {
			to = []cell{cellOf(collection)}
		}
		for _, c := range to {
			by[c] = append(by[c], r)
		}
	}
	return by
}

// readingTime is how long the states that a proxy comes with are looked for in all; what is not found is sent whole.
const readingTime = 2 * time.Second

// subscribe takes what a request wants and no longer wants. A name that is in both, or is wanted already, is sent anew.
func (f *feed) subscribe(request *cache.DeltaRequest) {
	var initial map[string]string
	if !f.started {
		initial = request.GetInitialResourceVersions()
		if root, ok := initial[sharedName]; ok && f.typeURL == SharedType {
			f.session.claim, f.session.claimed = parseRoot(root)
		}
	}
	for _, name := range request.GetResourceNamesUnsubscribe() {
		f.drop(name)
	}
	names := request.GetResourceNamesSubscribe()
	members := f.members(initial)
	// States of long ago are read from the store. Without it, a proxy that comes with many is not kept waiting for each.
	reading, cancel := context.WithTimeout(f.session.ctx, readingTime)
	defer cancel()
	for _, name := range names {
		f.add(reading, name, initial, members)
	}
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.must = f.must || !f.started || len(names) > 0
	f.started = true
}

func (f *feed) drop(name string) {
	if _, ok := f.have[name]; !ok {
		return
	}
	delete(f.have, name)
	s := f.session
	if f.typeURL == SharedType {
		s.forgetSets()
		return
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	switch f.typeURL {
	case AssignmentType:
		delete(s.server.assigned, s)
	case NamespaceType:
		delete(f.waiting, name)
		p, err := ident.ParsePartition(name)
		if err != nil {
			return // such a name is never held
		}
		s.server.dropLocked(s, p)
		s.server.tracker.dropped(s, s.node, cell(p))
	}
}

// add subscribes to a name. initial is what the proxy came with, members the part of it that is single resources.
func (f *feed) add(ctx context.Context, name string, initial map[string]string, members map[string][]manifest.Entry) {
	s := f.session
	known := false
	var partition ident.Partition
	switch f.typeURL {
	case AssignmentType:
		known = name == fleetName
	case SharedType:
		known = name == sharedName
	case NamespaceType:
		p, err := ident.ParsePartition(name)
		known = err == nil && uint32(p) < s.server.shown.Load().partitions()
		partition = p
	}
	if !known {
		f.gone = append(f.gone, name)
		f.strange++
		return
	}
	if f.typeURL == SharedType && f.have[name] != nil {
		s.forgetSets()
	}
	f.have[name] = f.resume(ctx, name, initial, members[name])
	s.server.mu.Lock()
	switch f.typeURL {
	case AssignmentType:
		s.server.assigned[s] = struct{}{}
	case NamespaceType:
		if s.server.partitions[partition] == nil {
			s.server.partitions[partition] = map[*session]struct{}{}
		}
		s.server.partitions[partition][s] = struct{}{}
	}
	s.server.mu.Unlock()
	s.mu.Lock()
	f.markLocked(name)
	s.mu.Unlock()
}

// resume says what the proxy came with of a collection: the state of a root, or single resources, or nothing that is
// known here, so that all is sent and what is not sent is gone.
func (f *feed) resume(ctx context.Context, name string, initial map[string]string, members []manifest.Entry) *holding {
	if f.typeURL == AssignmentType {
		return &holding{version: initial[name]}
	}
	if version, ok := initial[name]; ok {
		if h := f.resumeRoot(ctx, name, version); h != nil {
			return h
		}
	}
	if m, err := manifest.New(members); err == nil && len(members) > 0 {
		return &holding{manifest: m}
	}
	return &holding{manifest: manifest.Empty, full: true}
}

// resumeRoot takes the version that a proxy has of a collection: its root in hex. A partition's may be followed by a slash
// and the shared root it is in effect with; else that is the one that the proxy came with, and if it came with none, the
// sentinel is sent again. It returns nil when the root is not known.
func (f *feed) resumeRoot(ctx context.Context, name, version string) *holding {
	s := f.session
	text, sharedText, explicit := strings.Cut(version, "/")
	root, ok := parseRoot(text)
	if !ok {
		return nil
	}
	m, ok := s.server.manifestOf(ctx, f.target(name).collection, root)
	if !ok {
		return nil
	}
	h := &holding{manifest: m, complete: true}
	if f.typeURL == SharedType {
		s.sets = []ident.Hash{root}
	} else {
		h.shared, h.complete = s.claim, s.claimed
		if explicit {
			h.shared, h.complete = parseRoot(sharedText)
		}
	}
	s.server.tracker.resumed(s, s.node, end{cell: cellOf(name), manifest: m, shared: h.shared})
	return h
}

// members sorts the single resources that the proxy came with by collection.
func (f *feed) members(initial map[string]string) map[string][]manifest.Entry {
	var by map[string][]manifest.Entry
	for name, version := range initial {
		collection := sharedName
		if namespace, ok := strings.CutPrefix(name, snapshot.NamespacePrefix); ok {
			collection = ident.PartitionOf(namespace, f.session.server.shown.Load().partitions()).String()
		}
		hash, err := ident.ParseHash(version)
		if err != nil || hash.IsZero() || !strings.Contains(name, "/") || strings.HasPrefix(name, "p/") {
			continue
		}
		if by == nil {
			by = map[string][]manifest.Entry{}
		}
		by[collection] = append(by[collection], manifest.Entry{Name: name, Hash: hash})
	}
	return by
}

func parseRoot(version string) (ident.Hash, bool) {
	root, err := ident.ParseHash(version)
	return root, err == nil
}

// target is the state that the client is to have of a collection, and the snapshot it belongs to.
type target struct {
	collection *snapshot.Collection
	shared     *snapshot.Collection // for a partition: what it refers to
	snapshot   uint64
}

func (f *feed) target(name string) target {
	s := f.session
	if f.typeURL == SharedType {
		return s.nextSet()
	}
	p, err := ident.ParsePartition(name)
	if err != nil {
		p = 0 // such a name is never held
	}
	view := s.server.shown.Load().view(s.node, p)
	return target{collection: view.Partition, shared: view.Shared, snapshot: view.Snapshot}
}

// GetDeltaDiscoveryResponse makes the response, from the newest state there is.
func (f *feed) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	f.session.mu.Lock()
	must := f.must
	f.queued, f.armed, f.must = false, false, false
	names, anew := sortedNames(f.dirty), f.anew
	f.dirty, f.anew = nil, nil
	f.session.mu.Unlock()

	f.begin(anew)
	p := &page{response: &discoveryv3.DeltaDiscoveryResponse{TypeUrl: f.typeURL, RemovedResources: f.gone}}
	f.gone = nil
	for i, name := range names {
		done, err := f.fill(p, name)
		if err != nil {
			return nil, err
		}
		if !done {
			f.session.mu.Lock()
			for _, rest := range names[i:] {
				f.markLocked(rest)
			}
			f.session.mu.Unlock()
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

// page is a response being made.
type page struct {
	response *discoveryv3.DeltaDiscoveryResponse
	bytes    int
	ends     []end
}

// fill adds to a page what the stream lacks of name, and reports whether that was all.
func (f *feed) fill(p *page, name string) (bool, error) {
	h, ok := f.have[name]
	if !ok {
		return true, nil // no longer wanted
	}
	if f.typeURL == AssignmentType {
		if o := f.session.server.shown.Load().owners; o != nil && o.resource.GetVersion() != h.version {
			p.response.Resources = append(p.response.Resources, o.resource)
			h.version = o.resource.GetVersion()
		}
		return true, nil
	}
	t := f.target(name)
	collection := t.collection
	var shared ident.Hash
	if f.typeURL == NamespaceType {
		shared = t.shared.Root()
	}
	d, err := f.session.server.diffs.get(h.manifest, collection, name, f.typeURL)
	if err != nil {
		return false, err
	}
	if d.empty() && h.complete && h.shared == shared {
		return true, nil
	}
	if f.typeURL == NamespaceType && f.session.lacks(shared) {
		f.session.fetch(name)
		return true, nil
	}
	sent := 0
	for sent < len(d.set) && (p.bytes == 0 || p.bytes+d.sizes[sent] <= pageBytes) {
		p.bytes += d.sizes[sent]
		sent++
	}
	if sent == 0 && p.bytes >= pageBytes-sentinelBytes {
		return false, nil
	}
	p.response.Resources = append(p.response.Resources, d.set[:sent]...)
	p.response.RemovedResources = append(p.response.RemovedResources, d.removed...)
	for _, gone := range d.removed {
		p.bytes += len(gone) + 4
	}
	if sent < len(d.set) {
		return false, f.hold(h, d, sent)
	}
	root, shown := collection.Root(), f.session.server.shown.Load()
	ends := &configv1.Sentinel{
		Root:            root.Bytes(),
		SharedRoot:      shared.Bytes(),
		SnapshotVersion: t.snapshot,
		StoreRevision:   shown.revision,
		Count:           uint32(collection.Len()),
		Full:            h.full,
	}
	shown.announce(ends, cellOf(name))
	sentinel, err := sentinelResource(name, ends, root)
	if err != nil {
		return false, err
	}
	p.response.Resources = append(p.response.Resources, sentinel)
	p.bytes += sentinelBytes
	p.ends = append(p.ends, end{cell: cellOf(name), manifest: collection.Manifest(), shared: shared})
	*h = holding{manifest: collection.Manifest(), shared: shared, complete: true}
	if f.typeURL == SharedType {
		return f.session.sentSet(root), nil
	}
	h.kept = f.session.shared.have[sharedName] != nil
	return true, nil
}

// sentinelBytes is about what a sentinel takes on the wire.
const sentinelBytes = 512

// hold notes that only the first resources of a difference were sent, and all that it removes.
func (f *feed) hold(h *holding, d *difference, sent int) error {
	changes := make(map[string]ident.Hash, sent+len(d.removed))
	for i, r := range d.set[:sent] {
		changes[r.GetName()] = d.hashes[i]
	}
	for _, name := range d.removed {
		changes[name] = ident.Hash{}
	}
	m, err := h.manifest.With(changes)
	if err != nil {
		return fmt.Errorf("a page's state: %w", err)
	}
	h.manifest, h.complete = m, false
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
