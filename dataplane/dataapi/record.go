package dataapi

import (
	"context"
	"strings"
	"time"

	"github.com/prism-gateway/prism/dataplane/audit"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/shared/auditchain"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/principal"
)

// Recorder records accesses to data.
type Recorder interface {
	// Reserve fails when an access could not be recorded.
	Reserve() (audit.Slot, error)
}

// place is that of the record of a call; the zero value is none.
type place struct {
	slot   audit.Slot
	server *Server // nil: nothing is recorded, or it was
}

// giveBack gives the place back of what was not recorded.
func (p *place) giveBack() {
	if p.server != nil {
		p.slot.Cancel()
	}
}

// access is what a record is about.
type access struct {
	route     *routing.Route
	operation string
	write     bool
	who       admitted
	began     time.Time
}

// reserve takes the place of a call's record, so that nothing is done that cannot be recorded.
func (s *Server) reserve() (place, error) {
	if s.cfg.Audit == nil {
		return place{}, nil
	}
	slot, err := s.cfg.Audit.Reserve()
	return place{slot, s}, err
}

// end records how a call ended, and returns its error. Where the namespace is strict the record is safe before the caller
// hears of the call.
func (p *place) end(ctx context.Context, a access, err error) error {
	if p.server == nil {
		return err
	}
	server := p.server
	p.server = nil
	if a.who.elsewhere {
		p.slot.Cancel()
		return err
	}
	r := &auditchain.Record{
		Time: a.began.UTC(), Micros: server.cfg.Now().Sub(a.began).Microseconds(), Kind: principal.Anonymous.String(),
		Namespace: a.route.Namespace, Operation: a.operation, Result: "OK", RequestID: faultgrpc.RequestID(ctx), Version: a.route.Version,
	}
	if a.who.caller != nil && a.who.caller.Principal != nil {
		r.Principal, r.Kind = a.who.caller.Principal.ID, a.who.caller.Principal.Kind.String()
	}
	if a.who.session != nil {
		r.Session = a.who.session.ID()
	}
	f := fault.From(err)
	if f != nil {
		r.Result, r.Reason = f.Code.String(), string(f.Reason)
	}
	if a.who.asked && (f == nil || reached(f)) {
		r.Backend = backendOf(a.route)
	}
	if !a.route.Strict {
		p.slot.Write(r)
		return err
	}
	if lost := p.slot.WriteThrough(ctx, r); lost != nil && err == nil {
		outcome := fault.NotApplied
		if a.write {
			outcome = fault.Applied
		}
		return fault.From(lost).WithOutcome(outcome)
	}
	return err
}

// backendOf is the name of the backend that a route's calls reach.
func backendOf(r *routing.Route) string {
	if len(r.Backends) == 0 {
		return ""
	}
	_, name, _ := strings.Cut(r.Backends[0].Name, "/")
	return name
}

// short is a method's name as records have it, such as KeyValue/Get.
func short(service, method string) string {
	return service[strings.LastIndexByte(service, '.')+1:] + "/" + method
}
