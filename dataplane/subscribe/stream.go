package subscribe

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/telemetry"
)

const maxRejections = 1000 // details of one NACK, which must stay below a message's size

type (
	request  = discoveryv3.DeltaDiscoveryRequest
	response = discoveryv3.DeltaDiscoveryResponse
)

// session is one stream to one replica.
type session struct {
	endpoint string
	out      chan *request
	cancel   context.CancelFunc
}

// event is what a stream's goroutines tell the loop: that it is open (no response, no error), a response, its end.
type event struct {
	session      *session
	response     *response
	err          error
	installation string // as the replica names it; empty when it does not
}

// stream is the loop's end of the conversation with the connected replica.
type stream struct {
	session  *session  // nil while there is none
	began    time.Time // the newest
	queue    []*request
	flows    map[string]*flow
	answered bool // the replica has answered anything
}

// flow is what is asked of one type and not answered.
type flow struct {
	asked    bool                // this session
	answered bool                // this session
	resumed  map[string]struct{} // asked for with a root that is here: any answer of the type is one to these
	pending  map[string]struct{}
	since    time.Time // of the last question or answer
	open     int       // responses that are not acknowledged yet
	timeouts int       // since the last answer
}

// ack is a response that is to be acknowledged once, when all that it brought is in effect.
type ack struct {
	session    *session
	typeURL    string
	nonce      string
	open       int
	rejections []*configv1.Rejection
}

func (a *ack) reject(resource, version, field, reason string) {
	a.rejections = append(a.rejections, &configv1.Rejection{Resource: resource, Version: version, Field: field, Reason: reason})
}

func (l *loop) handle(e event) {
	if e.installation != "" && !l.checkInstallation(e) {
		return
	}
	switch {
	case e.response == nil && e.err == nil:
		l.opened(e.session)
	case e.session != l.session: // given up
	case e.err != nil:
		if l.answered {
			l.log.Warn("the stream to the control plane ended", telemetry.KeyAddress, e.session.endpoint, telemetry.KeyError, e.err)
		}
		l.closed()
	default:
		l.c.heard.Store(time.Now().UnixNano())
		if !l.answered {
			l.answered = true
			l.c.setConnected(e.session.endpoint)
			l.c.metrics.connected.Set(1)
			l.log.Info("connected to the control plane", telemetry.KeyAddress, e.session.endpoint)
		}
		l.receive(e.response)
	}
}

// closed ends the conversation. What is here stays.
func (l *loop) closed() {
	l.session, l.queue = nil, nil
	l.c.setConnected("")
	l.c.metrics.connected.Set(0)
	l.save()
}

// opened starts the conversation: everything that is wanted, with the roots that are here.
func (l *loop) opened(s *session) {
	l.session, l.began, l.queue, l.answered = s, time.Now(), nil, false
	l.flows = map[string]*flow{AssignmentType: {}, SharedType: {}, NamespaceType: {}}
	assignmentVersion := map[string]string{}
	if l.assignment != nil {
		assignmentVersion[assignmentName] = l.assignment.version
	}
	l.subscribe(AssignmentType, []string{assignmentName}, assignmentVersion)
	collections := []*collection{l.shared}
	l.restart(l.shared)
	l.subscribe(SharedType, []string{sharedName}, l.roots(collections))
	collections = collections[:0]
	var names []string
	for _, c := range l.order {
		l.restart(&c.collection)
		if !c.waitingSince.IsZero() {
			c.waitingSince = time.Now()
			l.wakeAt(c.waitingSince.Add(answerTimeout))
		}
		collections, names = append(collections, &c.collection), append(names, c.name)
	}
	if len(names) > 0 {
		l.subscribe(NamespaceType, names, l.roots(collections))
	}
}

// restart drops what a former stream left unfinished.
func (l *loop) restart(c *collection) {
	c.reset()
	c.wantFull, c.resyncAt = false, time.Time{}
}

// roots says what is here of collections: the root, and for a partition that is in effect with another shared set than the
// one that this stream was told of, that one's too.
func (l *loop) roots(collections []*collection) map[string]string {
	out := map[string]string{}
	for _, c := range collections {
		if c.have == nil || c.spoilt {
			continue
		}
		out[c.name] = c.have.root().String()
		told := l.shared.have != nil && !l.shared.spoilt && l.shared.have.root() == c.have.shared
		if c.typeURL == NamespaceType && !told {
			out[c.name] += "/" + c.have.shared.String()
		}
	}
	return out
}

// subscribe asks for names, of which resumed are here in the version said.
func (l *loop) subscribe(typeURL string, names []string, resumed map[string]string) {
	if l.session == nil {
		return
	}
	r := &request{TypeUrl: typeURL, ResourceNamesSubscribe: names}
	f := l.flows[typeURL]
	if !f.asked {
		f.asked = true
		r.InitialResourceVersions = resumed
		if typeURL == AssignmentType { // which is the first that a stream asks for
			r.Node = l.node()
		}
		f.resumed = map[string]struct{}{}
		for name := range resumed {
			f.resumed[name] = struct{}{}
		}
	}
	if f.pending == nil {
		f.pending = map[string]struct{}{}
	}
	for _, name := range names {
		f.pending[name] = struct{}{}
	}
	l.touch(f)
	l.send(r)
}

// node describes this proxy, in the first request of a stream.
func (l *loop) node() *corev3.Node {
	n := l.c.cfg.Node
	metadata := map[string]*structpb.Value{"prism.store_revision": structpb.NewStringValue(strconv.FormatInt(l.revision, 10))}
	if l.installation != "" {
		metadata["prism.installation"] = structpb.NewStringValue(l.installation)
	}
	return &corev3.Node{
		Id: n.ID, UserAgentName: "prism-proxy", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: n.Build},
		Metadata: &structpb.Struct{Fields: metadata},
	}
}

func (l *loop) unsubscribe(c *collection) {
	if l.session == nil || !l.flows[c.typeURL].asked {
		return
	}
	f := l.flows[c.typeURL]
	delete(f.pending, c.name)
	delete(f.resumed, c.name)
	l.send(&request{TypeUrl: c.typeURL, ResourceNamesUnsubscribe: []string{c.name}})
}

func (l *loop) send(r *request) {
	if len(l.queue) >= maxQueue {
		l.log.Error("the control plane does not read: the stream is given up", telemetry.KeyAddress, l.session.endpoint)
		l.session.cancel()
		return
	}
	l.queue = append(l.queue, r)
}

// touch starts anew the time within which a type must be answered.
func (l *loop) touch(f *flow) {
	f.since = time.Now()
	l.wakeAt(f.since.Add(answerTimeout))
}

// checkAnswers asks again for what was not answered. A replica that stays silent then is left for another.
func (l *loop) checkAnswers(due func(time.Time) bool) {
	if l.session == nil {
		return
	}
	for typeURL, f := range l.flows {
		if len(f.pending) == 0 || f.open > 0 || !due(f.since.Add(answerTimeout)) {
			continue
		}
		l.c.metrics.timeouts.WithLabelValues(typeLabel(typeURL)).Inc()
		l.log.Warn("a subscription was not answered", "type", typeURL, telemetry.KeyCount, len(f.pending), telemetry.KeyAddress, l.session.endpoint)
		if f.timeouts++; f.timeouts > 1 {
			l.session.cancel()
			continue
		}
		names := make([]string, 0, len(f.pending))
		for name := range f.pending {
			names = append(names, name)
		}
		l.send(&request{TypeUrl: typeURL, ResourceNamesUnsubscribe: names})
		for _, name := range names {
			if c := l.collection(name); c != nil {
				c.reset()
			}
		}
		l.subscribe(typeURL, names, nil)
	}
}

// scheduleResync has everything of a collection sent again: at once for the first time, then after longer and longer.
func (l *loop) scheduleResync(c *collection, why string) {
	l.c.metrics.resyncs.WithLabelValues(why).Inc()
	c.reset()
	c.wantFull = true
	c.attempts++
	if c.attempts == 1 {
		l.resync(c)
		return
	}
	c.resyncAt = time.Now().Add(backoff(c.attempts - 2))
	l.wakeAt(c.resyncAt)
}

func (l *loop) resync(c *collection) {
	c.resyncAt = time.Time{}
	l.log.Warn("everything of a collection is asked for again", telemetry.KeyName, c.name, "attempt", c.attempts)
	l.unsubscribe(c)
	l.subscribe(c.typeURL, []string{c.name}, nil)
}

// finish counts one of the things that an acknowledgement waits for as done.
func (l *loop) finish(a *ack) {
	if a.open--; a.open > 0 || a.session != l.session || l.session == nil {
		return
	}
	r := &request{TypeUrl: a.typeURL, ResponseNonce: a.nonce}
	if len(a.rejections) > 0 {
		r.ErrorDetail = nack(a.rejections)
		l.c.metrics.nacks.WithLabelValues(typeLabel(a.typeURL)).Inc()
		first := a.rejections[0]
		l.log.Error("a part of the configuration is refused", telemetry.KeyCount, len(a.rejections), telemetry.KeyResource, first.GetResource(),
			"field", first.GetField(), telemetry.KeyReason, first.GetReason())
	}
	if f := l.flows[a.typeURL]; f != nil {
		f.open--
		l.touch(f)
	}
	l.send(r)
}

func nack(rejections []*configv1.Rejection) *rpcstatus.Status {
	first := rejections[0]
	s := &rpcstatus.Status{
		Code:    int32(codes.InvalidArgument),
		Message: fmt.Sprintf("%d refused; %s: %s", len(rejections), first.GetResource(), first.GetReason()),
	}
	for _, r := range rejections[:min(len(rejections), maxRejections)] {
		if detail, err := anypb.New(r); err == nil {
			s.Details = append(s.Details, detail)
		}
	}
	return s
}

// typeLabel is the name under which a type is counted.
func typeLabel(typeURL string) string {
	switch typeURL {
	case AssignmentType:
		return "assignment"
	case SharedType:
		return "shared"
	case NamespaceType:
		return "namespace"
	}
	return "unknown"
}
