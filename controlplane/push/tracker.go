package push

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"

	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

// Tracker knows what each stream of this replica was sent and what it answered. Its methods may be called from any
// goroutine.
type Tracker struct {
	mu      sync.Mutex                     // guards the rest, streams too; held for what is known of one stream or one partition
	streams map[string]*tracked            // by proxy; the newest stream of each
	cells   map[ident.Partition][]*tracked // who subscribes to a partition, by proxy
	changed func(ident.Partition)          // nil: nobody listens
}

// tracked is one stream.
type tracked struct {
	proxy, build string
	heard        time.Time
	cells        []progress // by cell
}

// progress is how far one stream is with one collection.
type progress struct {
	cell           cell
	sent, accepted *mark // nil while nothing was
	rejections     []*configv1.Rejection
}

// NewTracker returns a Tracker that knows nothing.
func NewTracker() *Tracker {
	return &Tracker{streams: map[string]*tracked{}, cells: map[ident.Partition][]*tracked{}}
}

// Cells returns what is known of a partition: one entry for each proxy whose stream subscribes to it, by proxy. The
// caller may keep the entries.
func (t *Tracker) Cells(p ident.Partition) []*controlv1.CellState {
	t.mu.Lock()
	defer t.mu.Unlock()
	states := make([]*controlv1.CellState, 0, len(t.cells[p]))
	for _, stream := range t.cells[p] {
		at, _ := stream.find(cell(p))
		progress := &stream.cells[at]
		state := &controlv1.CellState{
			Proxy:      stream.proxy,
			Partition:  uint32(p),
			Rejections: stream.refused(progress),
			Build:      stream.build,
			LastSeen:   timestamppb.New(stream.heard),
		}
		if m := progress.sent; m != nil {
			state.SentRoot = m.root().Bytes()
		}
		if m := progress.accepted; m != nil {
			state.AcceptedRoot, state.AcceptedSharedRoot = m.root().Bytes(), m.shared.Bytes()
		}
		states = append(states, state)
	}
	return states
}

// Rejections returns what a proxy refuses, in all its partitions and in what all share, by resource, each once.
func (t *Tracker) Rejections(proxy string) []*configv1.Rejection {
	t.mu.Lock()
	defer t.mu.Unlock()
	stream, ok := t.streams[proxy]
	if !ok {
		return nil
	}
	var all []*configv1.Rejection
	for _, progress := range stream.cells {
		all = append(all, progress.rejections...)
	}
	slices.SortFunc(all, func(a, b *configv1.Rejection) int { return strings.Compare(a.GetResource(), b.GetResource()) })
	return slices.CompactFunc(all, func(a, b *configv1.Rejection) bool { return a.GetResource() == b.GetResource() })
}

// Streams returns the proxies that have a stream here, sorted.
func (t *Tracker) Streams() []string {
	t.mu.Lock()
	proxies := make([]string, 0, len(t.streams))
	for proxy := range t.streams {
		proxies = append(proxies, proxy)
	}
	t.mu.Unlock()
	slices.Sort(proxies)
	return proxies
}

// Listen has changed called after something about a partition has changed, with locks of the Tracker held: it must return
// at once and ask the Tracker nothing. Only one may listen, and from before the first stream.
func (t *Tracker) Listen(changed func(ident.Partition)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed = changed
}

// find returns where the progress of a cell is, or ought to be.
func (s *tracked) find(c cell) (int, bool) {
	return slices.BinarySearchFunc(s.cells, c, func(p progress, c cell) int { return cmp.Compare(p.cell, c) })
}

// refused is what a stream refuses of a partition, and of what all share.
func (s *tracked) refused(of *progress) []*configv1.Rejection {
	all := slices.Clone(of.rejections)
	if i, ok := s.find(sharedCell); ok {
		all = append(all, s.cells[i].rejections...)
	}
	return all
}

func (t *Tracker) signalLocked(c cell) {
	if t.changed != nil && c != sharedCell {
		t.changed(ident.Partition(c))
	}
}

// open takes a new stream of a proxy. It replaces the one before, which the proxy has left, seen or unseen.
func (t *Tracker) open(proxy, build string) *tracked {
	t.mu.Lock()
	defer t.mu.Unlock()
	if former := t.streams[proxy]; former != nil {
		t.forgetLocked(former)
	}
	stream := &tracked{proxy: proxy, build: build, heard: time.Now()}
	t.streams[proxy] = stream
	return stream
}

// closed forgets a stream, unless a newer one has taken its place.
func (t *Tracker) closed(stream *tracked) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[stream.proxy] == stream {
		t.forgetLocked(stream)
	}
}

func (t *Tracker) forgetLocked(stream *tracked) {
	delete(t.streams, stream.proxy)
	for _, progress := range stream.cells {
		t.leaveLocked(stream, progress.cell)
	}
	stream.cells = nil
}

// leaveLocked takes a stream from those of a partition.
func (t *Tracker) leaveLocked(stream *tracked, c cell) {
	if c == sharedCell {
		return
	}
	p := ident.Partition(c)
	left := slices.DeleteFunc(t.cells[p], func(o *tracked) bool { return o == stream })
	if t.cells[p] = left; len(left) == 0 {
		delete(t.cells, p)
	}
	t.signalLocked(c)
}

// heardLocked notes that a stream was heard of. It is false for one that a newer has replaced.
func (t *Tracker) heardLocked(stream *tracked) bool {
	if t.streams[stream.proxy] != stream {
		return false
	}
	stream.heard = time.Now()
	return true
}

// progressLocked returns a stream's progress with a cell. It is good until the next call.
func (t *Tracker) progressLocked(stream *tracked, c cell) *progress {
	i, known := stream.find(c)
	if !known {
		stream.cells = slices.Insert(stream.cells, i, progress{cell: c})
		if c != sharedCell {
			p := ident.Partition(c)
			at, _ := slices.BinarySearchFunc(t.cells[p], stream.proxy, func(o *tracked, proxy string) int { return strings.Compare(o.proxy, proxy) })
			t.cells[p] = slices.Insert(t.cells[p], at, stream)
		}
	}
	return &stream.cells[i]
}

// resumed notes what a proxy came with: it is in effect there.
func (t *Tracker) resumed(stream *tracked, m *mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.heardLocked(stream) {
		progress := t.progressLocked(stream, m.cell)
		progress.sent, progress.accepted = m, m
		t.signalLocked(m.cell)
	}
}

func (t *Tracker) sent(stream *tracked, ends []*mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.heardLocked(stream) {
		return
	}
	for _, m := range ends {
		t.progressLocked(stream, m.cell).sent = m
		t.signalLocked(m.cell)
	}
}

// answered notes an acknowledgement. What was refused by name leaves the rest in effect, unless it is the name of the
// collection; whole, which is empty for an acknowledgement, says why nothing is.
func (t *Tracker) answered(stream *tracked, ends []*mark, rejected map[cell][]*configv1.Rejection, whole string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.heardLocked(stream) {
		return
	}
	before := len(t.progressLocked(stream, sharedCell).rejections)
	for _, m := range ends {
		progress := t.progressLocked(stream, m.cell)
		progress.rejections = standing(progress.rejections, m.manifest)
		if whole != "" {
			progress.rejections = append(progress.rejections, &configv1.Rejection{Resource: m.cell.String(), Reason: whole})
		} else if !names(rejected[m.cell], m.cell) {
			progress.accepted = m
		}
		t.signalLocked(m.cell)
	}
	for c, list := range rejected {
		progress := t.progressLocked(stream, c)
		again := map[string]bool{}
		for _, r := range list {
			again[r.GetResource()] = true
		}
		progress.rejections = append(list, slices.DeleteFunc(progress.rejections, func(old *configv1.Rejection) bool {
			return again[old.GetResource()]
		})...)
		t.signalLocked(c)
	}
	if _, refused := rejected[sharedCell]; refused || before != len(t.progressLocked(stream, sharedCell).rejections) {
		for _, progress := range stream.cells { // it is told of each of them
			t.signalLocked(progress.cell)
		}
	}
}

// names reports whether the collection itself is among what is refused of it.
func names(rejections []*configv1.Rejection, c cell) bool {
	return slices.ContainsFunc(rejections, func(r *configv1.Rejection) bool { return r.GetResource() == c.String() })
}

// standing are the rejections whose version is still the collection's: others were overtaken by a good one or by a
// removal.
func standing(rejections []*configv1.Rejection, m *manifest.Manifest) []*configv1.Rejection {
	var left []*configv1.Rejection
	for _, r := range rejections {
		if hash, ok := m.Get(r.GetResource()); ok && hash.String() == r.GetVersion() {
			left = append(left, r)
		}
	}
	return left
}

// dropped notes that a stream no longer subscribes to a partition.
func (t *Tracker) dropped(stream *tracked, c cell) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.heardLocked(stream) {
		return
	}
	if i, known := stream.find(c); known {
		stream.cells = slices.Delete(stream.cells, i, i+1)
		t.leaveLocked(stream, c)
	}
}

// maxRejections bounds what is kept of one NACK.
const maxRejections = 1000

// rejectionsOf reads a NACK. Without details that name resources the whole response is refused, for the reason returned.
func rejectionsOf(detail *statuspb.Status) (rejections []*configv1.Rejection, whole string) {
	if detail == nil {
		return nil, ""
	}
	for _, any := range detail.GetDetails()[:min(len(detail.GetDetails()), maxRejections)] {
		r := &configv1.Rejection{}
		if any.UnmarshalTo(r) == nil && r.GetResource() != "" {
			rejections = append(rejections, r)
		}
	}
	if len(rejections) > 0 {
		return rejections, ""
	}
	return nil, cmp.Or(detail.GetMessage(), "no reason was given")
}
