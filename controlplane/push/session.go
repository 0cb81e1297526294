package push

import (
	"context"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/shared/ident"
)

// What of the unknown one stream may ask for: a later build knows other types and names, but not without end.
const (
	maxUnknownTypes = 256
	maxUnknownNames = 16_384
)

const (
	// revisionKey is in a proxy's node metadata: the highest store revision that it was sent, in decimal.
	revisionKey = "prism.store_revision"
	// installationHeader is in the header of each stream, so that a proxy can tell one installation from another.
	installationHeader = "prism-installation"
)

// session is one stream. The xDS server runs it in one goroutine, which calls CreateDeltaWatch for each request, the
// methods of feed for each response, and Send; fields without another word belong to that goroutine.
type session struct {
	begun

	server *Server
	ctx    context.Context
	node   string
	build  string

	assignment, shared, namespaces *feed
	unknown                        map[string]*feed // feeds of types that this build does not know, by type

	claim   ident.Hash // the shared root that the proxy came with
	claimed bool
	sets    []ident.Hash // roots of the shared sets that were sent last, newest last
	lacking ident.Hash   // a root that the client was found to lack, until a set is sent
	ready   []cell       // partitions that wait for no set any more
	tracked *tracked
	flagged bool // it is slow; belongs to Run

	mu sync.Mutex // guards what feeds say it does
}

// DeltaAggregatedResources serves one proxy until its stream ends.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	leave, err := s.enter(stream.Context())
	if err != nil {
		return err
	}
	deaf := false
	defer func() { leave(deaf) }()
	if err := stream.SetHeader(metadata.Pairs(installationHeader, s.store.Installation().GetId())); err != nil {
		return err
	}
	first, err := s.firstOf(stream)
	if err != nil {
		return err
	}
	if isStandard(first.GetTypeUrl()) && s.standard != nil {
		defer func() { deaf = s.closing.Err() != nil }()
		return s.serveStandard(stream.Context(), func(ctx context.Context) error {
			return s.standard.Delta(ctx, &begun{AggregatedDiscoveryService_DeltaAggregatedResourcesServer: stream, first: first})
		})
	}
	ctx, done := s.attend(stream.Context())
	defer done()
	session, err := s.newSession(ctx, stream, first)
	if err != nil {
		return err
	}
	if err := s.catchUp(ctx, first.GetNode()); err != nil {
		return err
	}
	s.join(session)
	session.tracked = s.tracker.open(session.node, session.build)
	defer func() {
		s.leave(session)
		s.tracker.closed(session.tracked)
		deaf = s.closing.Err() != nil && session.waits(time.Now(), 0)
	}()
	err = delta.NewServer(ctx, session, nil, delta.DeactivateLegacyWildcard()).DeltaStreamHandler(session, resource.AnyType)
	if ctx.Err() != nil && stream.Context().Err() == nil {
		return context.Cause(ctx)
	}
	return err
}

// firstOf reads the first request of a stream. It may never come, and does not keep the server from stopping.
func (s *Server) firstOf(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) (*discoveryv3.DeltaDiscoveryRequest, error) {
	var first *discoveryv3.DeltaDiscoveryRequest
	read := make(chan error, 1)
	go func() { // ends with the stream
		var err error
		first, err = stream.Recv()
		read <- err
	}()
	select {
	case err := <-read:
		return first, err
	case <-s.closing.Done():
		return nil, errStopping
	}
}

func (s *Server) newSession(ctx context.Context, stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, first *discoveryv3.DeltaDiscoveryRequest) (*session, error) {
	id := first.GetNode().GetId()
	if id == "" {
		return nil, errNoNode
	}
	session := &session{
		begun:  begun{AggregatedDiscoveryService_DeltaAggregatedResourcesServer: stream, first: first},
		server: s, ctx: ctx, node: id,
		build: first.GetNode().GetUserAgentVersion(),
	}
	session.assignment = newFeed(session, AssignmentType)
	session.shared = newFeed(session, SharedType)
	session.namespaces = newFeed(session, NamespaceType)
	return session, nil
}

func (s *Server) join(session *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics.streams.Inc()
	s.sessions[session] = struct{}{}
}

// leave forgets a session whose stream has ended.
func (s *Server) leave(session *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics.streams.Dec()
	delete(s.sessions, session)
	for _, h := range session.namespaces.have {
		s.unsubscribeLocked(session, h.cell)
	}
}

// subscribe has a session woken for a partition.
func (s *Server) subscribe(next *session, c cell) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partitions == nil {
		s.partitions = make([][]*session, s.shown.Load().partitions())
	}
	s.partitions[c] = append(s.partitions[c], next)
}

func (s *Server) unsubscribe(former *session, c cell) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsubscribeLocked(former, c)
}

func (s *Server) unsubscribeLocked(former *session, c cell) {
	s.partitions[c] = slices.DeleteFunc(s.partitions[c], func(o *session) bool { return o == former })
}

// Send notes what goes out, then sends it. A response that would say nothing is left out.
func (s *session) Send(response *discoveryv3.DeltaDiscoveryResponse) error {
	f := s.feed(response.GetTypeUrl())
	if f.silent {
		f.rearm()
		return nil
	}
	f.inFlight = response.GetNonce()
	f.sentAt.Store(time.Now().UnixNano())
	s.server.tracker.sent(s.tracked, f.ends)
	s.server.metrics.responses.WithLabelValues(f.label()).Inc()
	s.server.metrics.resources.WithLabelValues(f.label()).Add(float64(len(response.GetResources())))
	if err := s.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Send(response); err != nil {
		return err
	}
	if f == s.shared {
		s.resume()
	}
	return nil
}

// feed returns the session's feed of a type.
func (s *session) feed(typeURL string) *feed {
	switch typeURL {
	case AssignmentType:
		return s.assignment
	case SharedType:
		return s.shared
	case NamespaceType:
		return s.namespaces
	}
	f, ok := s.unknown[typeURL]
	if !ok {
		f = newFeed(s, typeURL)
		if s.unknown == nil {
			s.unknown = map[string]*feed{}
		}
		s.unknown[typeURL] = f
	}
	return f
}

// CreateDeltaWatch takes a request. The response is queued at once when there is one, else when a publication wakes the
// feed. At most one response of a feed is queued, so that the stream's channel, which has room for 22, cannot fill:
// feeds of unknown types queue only here, when the channel is drained of them.
func (s *session) CreateDeltaWatch(request *cache.DeltaRequest, _ cache.Subscription, responses chan cache.DeltaResponse) (func(), error) {
	f := s.feed(request.GetTypeUrl())
	f.acknowledge(request)
	f.subscribe(request)
	if len(s.unknown) > maxUnknownTypes || f.strange > maxUnknownNames {
		return nil, errTooStrange
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.responses = responses
	f.armed = f.inFlight == "" // else its acknowledgement will be the next request
	f.sendLocked()
	return f.disarm, nil
}

// CreateWatch is for state of the world, which is not served here.
func (s *session) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, errNotServed
}

// catchUp waits until this replica knows all that the proxy has seen, so that no proxy is taken back to older state.
func (s *Server) catchUp(ctx context.Context, node *corev3.Node) error {
	seen := seenRevision(node)
	if s.store.Revision() < seen {
		patience := time.NewTimer(s.patience)
		defer patience.Stop()
		look := time.NewTicker(20 * time.Millisecond)
		defer look.Stop()
		for s.store.Revision() < seen {
			select {
			case <-look.C:
			case <-patience.C:
				return errBehind
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	s.publish() // Run may not have come to it yet
	return nil
}
