package push

import (
	"cmp"
	"maps"
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

// cell is a partition on one proxy, or sharedCell.
type cell int64

const sharedCell cell = -1

// String is the name of the cell's collection.
func (c cell) String() string {
	if c == sharedCell {
		return sharedName
	}
	return ident.Partition(c).String()
}

func cellOf(name string) cell {
	if p, err := ident.ParsePartition(name); err == nil {
		return cell(p)
	}
	return sharedCell
}

// Tracker knows what each stream of this replica was sent and what it answered. Its methods may be called from any
// goroutine.
type Tracker struct {
	mu      sync.Mutex
	streams map[string]*tracked                      // by proxy; the newest stream of each
	cells   map[ident.Partition]map[string]*progress // by partition and proxy
	changed func(ident.Partition)                    // nil: nobody listens
}

// tracked is one stream.
type tracked struct {
	session *session
	build   string
	heard   time.Time
	cells   map[cell]*progress
}

// progress is how far one stream is with one collection.
type progress struct {
	stream         *tracked
	sent, accepted pair
	rejections     []*configv1.Rejection
}

// pair is a root and the shared root it goes with.
type pair struct{ root, shared ident.Hash }

// NewTracker returns a Tracker that knows nothing.
func NewTracker() *Tracker {
	return &Tracker{
		streams: map[string]*tracked{},
		cells:   map[ident.Partition]map[string]*progress{},
	}
}

// Cells returns what is known of a partition: one entry for each proxy whose stream subscribes to it, by proxy. The
// caller may keep the entries.
func (t *Tracker) Cells(p ident.Partition) []*controlv1.CellState {
	t.mu.Lock()
	defer t.mu.Unlock()
	states := make([]*controlv1.CellState, 0, len(t.cells[p]))
	for _, proxy := range slices.Sorted(maps.Keys(t.cells[p])) {
		progress := t.cells[p][proxy]
		states = append(states, &controlv1.CellState{
			Proxy:              proxy,
			Partition:          uint32(p),
			SentRoot:           progress.sent.root.Bytes(),
			AcceptedRoot:       progress.accepted.root.Bytes(),
			AcceptedSharedRoot: progress.accepted.shared.Bytes(),
			Rejections:         progress.stream.refused(progress),
			Build:              progress.stream.build,
			LastSeen:           timestamppb.New(progress.stream.heard),
		})
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
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.streams))
}

// Listen has changed called after something about a partition has changed, with locks of the Tracker held: it must return
// at once and ask the Tracker nothing. Only one may listen, and from before the first stream.
func (t *Tracker) Listen(changed func(ident.Partition)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed = changed
}

// refused is what a stream refuses of a partition, and of what all share.
func (s *tracked) refused(of *progress) []*configv1.Rejection {
	all := slices.Clone(of.rejections)
	if shared := s.cells[sharedCell]; shared != nil {
		all = append(all, shared.rejections...)
	}
	return all
}

func (t *Tracker) signalLocked(c cell) {
	if t.changed != nil && c != sharedCell {
		t.changed(ident.Partition(c))
	}
}

// open takes a new stream of a proxy. It replaces the one before, which the proxy has left, seen or unseen.
func (t *Tracker) open(s *session, proxy, build string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(proxy)
	t.streams[proxy] = &tracked{session: s, build: build, heard: time.Now(), cells: map[cell]*progress{}}
}

// closed forgets a stream, unless a newer one has taken its place.
func (t *Tracker) closed(s *session, proxy string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if stream := t.streams[proxy]; stream != nil && stream.session == s {
		t.forgetLocked(proxy)
	}
}

func (t *Tracker) forgetLocked(proxy string) {
	stream, ok := t.streams[proxy]
	if !ok {
		return
	}
	delete(t.streams, proxy)
	for c := range stream.cells {
		t.removeLocked(stream, proxy, c)
	}
}

func (t *Tracker) removeLocked(stream *tracked, proxy string, c cell) {
	delete(stream.cells, c)
	if c == sharedCell {
		return
	}
	p := ident.Partition(c)
	delete(t.cells[p], proxy)
	if len(t.cells[p]) == 0 {
		delete(t.cells, p)
	}
	t.signalLocked(c)
}

// streamLocked returns the proxy's stream if it is this one still, and notes that it was heard of.
func (t *Tracker) streamLocked(s *session, proxy string) *tracked {
	stream := t.streams[proxy]
	if stream == nil || stream.session != s {
		return nil
	}
	stream.heard = time.Now()
	return stream
}

func (t *Tracker) progressLocked(stream *tracked, proxy string, c cell) *progress {
	if known, ok := stream.cells[c]; ok {
		return known
	}
	added := &progress{stream: stream}
	stream.cells[c] = added
	if c != sharedCell {
		p := ident.Partition(c)
		if t.cells[p] == nil {
			t.cells[p] = map[string]*progress{}
		}
		t.cells[p][proxy] = added
	}
	return added
}

// resumed notes what a proxy came with: it is in effect there.
func (t *Tracker) resumed(s *session, proxy string, e end) {
	t.mu.Lock()
	defer t.mu.Unlock()
	stream := t.streamLocked(s, proxy)
	if stream == nil {
		return
	}
	progress := t.progressLocked(stream, proxy, e.cell)
	progress.sent = pair{root: e.manifest.Root(), shared: e.shared}
	progress.accepted = progress.sent
	t.signalLocked(e.cell)
}

func (t *Tracker) sent(s *session, proxy string, ends []end) {
	t.mu.Lock()
	defer t.mu.Unlock()
	stream := t.streamLocked(s, proxy)
	if stream == nil {
		return
	}
	for _, e := range ends {
		t.progressLocked(stream, proxy, e.cell).sent = pair{root: e.manifest.Root(), shared: e.shared}
		t.signalLocked(e.cell)
	}
}

// answered notes an acknowledgement. What was refused by name leaves the rest in effect, unless it is the name of the
// collection; whole, which is empty for an acknowledgement, says why nothing is.
func (t *Tracker) answered(s *session, proxy string, ends []end, rejected map[cell][]*configv1.Rejection, whole string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	stream := t.streamLocked(s, proxy)
	if stream == nil {
		return
	}
	shared := t.progressLocked(stream, proxy, sharedCell)
	before := len(shared.rejections)
	defer func() {
		if _, refused := rejected[sharedCell]; refused || before != len(shared.rejections) {
			for c := range stream.cells { // it is told of each of them
				t.signalLocked(c)
			}
		}
	}()
	for _, e := range ends {
		progress := t.progressLocked(stream, proxy, e.cell)
		progress.rejections = standing(progress.rejections, e.manifest)
		if whole != "" {
			progress.rejections = append(progress.rejections, &configv1.Rejection{Resource: e.cell.String(), Reason: whole})
		} else if !names(rejected[e.cell], e.cell.String()) {
			progress.accepted = pair{root: e.manifest.Root(), shared: e.shared}
		}
		t.signalLocked(e.cell)
	}
	for c, list := range rejected {
		progress := t.progressLocked(stream, proxy, c)
		again := map[string]bool{}
		for _, r := range list {
			again[r.GetResource()] = true
		}
		progress.rejections = append(list, slices.DeleteFunc(progress.rejections, func(old *configv1.Rejection) bool {
			return again[old.GetResource()]
		})...)
		t.signalLocked(c)
	}
}

func names(rejections []*configv1.Rejection, resource string) bool {
	return slices.ContainsFunc(rejections, func(r *configv1.Rejection) bool { return r.GetResource() == resource })
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
func (t *Tracker) dropped(s *session, proxy string, c cell) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if stream := t.streamLocked(s, proxy); stream != nil {
		t.removeLocked(stream, proxy, c)
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
