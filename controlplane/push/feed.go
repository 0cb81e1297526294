package push

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"time"

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

	have     []holding // what is subscribed to, by cell
	gone     []string  // subscribed to and not there, to be told
	strange  int       // how many such names there were
	waiting  cells     // partitions that wait for a shared set
	version  string    // of the assignment that the client has
	started  bool      // whether there was a request
	silent   bool      // the response just made says nothing and need not be sent
	inFlight string    // nonce of the response that waits for its acknowledgement
	ends     []*mark   // what that response completes

	sentAt atomic.Int64 // when the response in flight was sent, in Unix nanoseconds; 0 when none is

	// Guarded by session.mu.
	responses chan cache.DeltaResponse
	armed     bool  // a response may be queued
	queued    bool  // a response is queued
	must      bool  // answer although there is nothing
	all       bool  // everything has to be looked at
	dirty     cells // what has to be looked at besides
	anew      cells // what is sent in full whatever the client has
}

// holding is what the stream has of one collection.
type holding struct {
	cell     cell
	complete bool  // the last that was sent was the sentinel of this state
	kept     bool  // the client has the shared set and keeps it for this state
	full     bool  // everything is being sent anew
	at       *mark // nil for the assignment
}

func newFeed(s *session, typeURL string) *feed {
	return &feed{session: s, typeURL: typeURL, request: &cache.DeltaRequest{TypeUrl: typeURL}}
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

// named returns the cell that a name of the feed's type stands for, if there is one.
func (f *feed) named(name string) (cell, bool) {
	switch f.typeURL {
	case AssignmentType:
		return fleetCell, name == fleetName
	case SharedType:
		return sharedCell, name == sharedName
	case NamespaceType:
		p, err := ident.ParsePartition(name)
		return cell(p), err == nil && uint32(p) < f.session.server.shown.Load().partitions()
	}
	return 0, false
}

// holds returns what the stream has of a cell, nil when it does not subscribe to it. It is good until the next request.
func (f *feed) holds(c cell) *holding {
	if i, ok := f.search(c); ok {
		return &f.have[i]
	}
	return nil
}

func (f *feed) search(c cell) (int, bool) {
	return slices.BinarySearchFunc(f.have, c, func(h holding, c cell) int { return cmp.Compare(h.cell, c) })
}

// wake says that what the feed has of a cell may be old.
func (f *feed) wake(c cell) {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.dirty.add(c)
	f.sendLocked()
}

// wakeAll says that all that the feed has may be old.
func (f *feed) wakeAll() {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.all = true
	f.sendLocked()
}

func (f *feed) wokenLocked() bool { return f.all || len(f.dirty) > 0 }

// sendLocked queues a response when there is something to say and nothing in its way.
func (f *feed) sendLocked() {
	if f.armed && !f.queued && (f.must || f.wokenLocked()) {
		f.queued = true
		f.responses <- f
	}
}

// rearm takes back that a response was made.
func (f *feed) rearm() {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.armed = true
	if f.wokenLocked() { // what a first answer waits for wakes the feed
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
	s.server.tracker.answered(s.tracked, f.ends, by, whole)
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
		if c, ok := f.named(collection); ok && c != fleetCell && f.holds(c) != nil {
			to = []cell{c}
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
	c, known := f.named(name)
	i, held := f.search(c)
	if !known || !held {
		return
	}
	f.have = slices.Delete(f.have, i, i+1)
	s := f.session
	switch f.typeURL {
	case SharedType:
		s.forgetSets()
	case NamespaceType:
		f.waiting.remove(c)
		s.server.unsubscribe(s, c)
		s.server.tracker.dropped(s.tracked, c)
	}
}

// add subscribes to a name. initial is what the proxy came with, members the part of it that is single resources.
func (f *feed) add(ctx context.Context, name string, initial map[string]string, members map[cell][]manifest.Entry) {
	c, known := f.named(name)
	if !known {
		f.gone = append(f.gone, name)
		f.strange++
		return
	}
	s := f.session
	i, again := f.search(c)
	if again && c == sharedCell {
		s.forgetSets()
	}
	h := f.resume(ctx, c, initial, members[c])
	if again {
		f.have[i] = h
	} else {
		f.have = slices.Insert(f.have, i, h)
		if f.typeURL == NamespaceType {
			s.server.subscribe(s, c)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.dirty.add(c)
}
