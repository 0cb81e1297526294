package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/shared/fault"
)

// installationHeader names, in the header of a report, the installation that the proxy serves, where it serves any.
const installationHeader = "prism-installation"

// Report keeps a proxy in the fleet for as long as it reports, and for its lease after.
func (f *Fleet) Report(stream controlv1.FleetService_ReportServer) error {
	if f.store.Head() == nil {
		return fault.New(fault.Unavailable, fault.NotLoaded, "this replica has not loaded the configuration yet").WithRetry(time.Second)
	}
	ours := f.store.Installation().GetId()
	if theirs := metadata.ValueFromIncomingContext(stream.Context(), installationHeader); len(theirs) > 0 && theirs[0] != ours {
		return fault.Newf(fault.Invalid, fault.Field, "%s: the proxy serves installation %s, this is %s", installationHeader, theirs[0], ours)
	}
	messages := make(chan *controlv1.ReportRequest)
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- m:
			case <-stream.Context().Done():
				ended <- stream.Context().Err()
				return
			}
		}
	}()
	r := &registration{fleet: f}
	defer func() {
		if r.report != nil {
			f.reports.end(r.report)
		}
	}()
	for {
		select {
		case <-f.closing.Done():
			return fault.New(fault.Unavailable, fault.Draining, "this replica is stopping").WithRetry(100 * time.Millisecond)
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return r.leave(stream.Context())
			}
			return err
		case m := <-messages:
			if err := r.take(m); err != nil {
				return err
			}
			// Every message is answered, so that a proxy notices a replica that hangs; before the store is asked, which is
			// not the replica's fault when it is slow.
			if err := stream.Send(r.answer); err != nil {
				return err
			}
			if err := r.lease(stream.Context(), m); errors.Is(err, errAnew) {
				return err
			} else if err != nil {
				// The proxy serves all the same, and reports again soon.
				f.log.Warn("a proxy's lease was not prolonged", "proxy", r.report.proxy, "error", err)
			}
		}
	}
}

// registration is one report stream. It belongs to its handler's goroutine.
type registration struct {
	fleet  *Fleet
	report *report
	member *configv1.Member // as it is in the store
	since  *timestamppb.Timestamp
	kept   time.Time
	second bool                      // another proxy has this id, which was said
	answer *controlv1.ReportResponse // to each message

	keep, release func(context.Context) error
}

// take notes one message.
func (r *registration) take(m *controlv1.ReportRequest) error {
	id := m.GetMember().GetId()
	if r.report != nil && r.report.proxy != id {
		return fault.New(fault.Invalid, fault.Field, "member.id: every message of a stream must name the same proxy")
	}
	if err := r.fleet.checkReport(m); err != nil {
		return err
	}
	if r.report == nil {
		r.report = r.fleet.reports.begin(id)
		r.since = timestamppb.Now()
		r.answer = &controlv1.ReportResponse{
			Heartbeat: durationpb.New(r.fleet.cfg.Lease / 4), Lease: durationpb.New(r.fleet.cfg.Lease),
		}
	}
	for _, p := range m.GetPropagation() {
		r.fleet.metrics.propagated(p.GetTook().AsDuration())
	}
	r.fleet.reports.update(r.report, m)
	return nil
}

// errAnew ends a report of which nothing is known any more here.
var errAnew = fault.New(fault.Unavailable, fault.Changed, "another proxy had this id and has left: report anew").WithRetry(100 * time.Millisecond)

// lease puts the proxy into the store or prolongs its stay. Of two proxies of one id the one that came later is in the
// store; the other is again when that one has left.
func (r *registration) lease(ctx context.Context, m *controlv1.ReportRequest) error {
	if r.keep != nil && proto.Equal(r.member, m.GetMember()) {
		if time.Since(r.kept) < r.fleet.cfg.Lease/8 {
			return nil
		}
		known := r.fleet.store.Member(r.report.proxy)
		if r.rival(known) {
			return nil
		}
		if known == nil && !r.fleet.reports.current(r.report) {
			return errAnew
		}
		if known != nil && r.keep(ctx) == nil {
			r.kept = time.Now()
			return nil
		}
	}
	keep, release, err := r.fleet.store.PutMember(ctx, &recordv1.MemberLease{
		Member: m.GetMember(), Build: m.GetBuild(), Replica: r.fleet.cfg.Replica.GetId(), Since: r.since,
	}, r.fleet.cfg.Lease)
	if err != nil {
		return err
	}
	r.keep, r.release, r.member, r.kept = keep, release, m.GetMember(), time.Now()
	return nil
}

// rival reports whether the member in the store is another process, and says so once.
func (r *registration) rival(known *recordv1.MemberLease) bool {
	ours, other := r.member.GetAddress(), known.GetMember().GetAddress()
	there := known != nil && other != ours
	if there && !r.second {
		r.fleet.log.Error("two proxies have one id, and the one that came later takes its place: give each its own",
			"proxy", r.report.proxy, "address", ours, "other", other)
	}
	r.second = there
	return there
}

// leave takes a proxy out at once that has drained and ended its stream in good order. Any other may come back.
func (r *registration) leave(ctx context.Context) error {
	if r.release == nil || !r.member.GetDraining() {
		return nil
	}
	return r.release(ctx)
}

// What a proxy may say of itself. All replicas keep it, and every proxy is sent some of it.
const (
	maxID      = 256
	maxAddress = 512
	maxBuild   = 256
	maxLabels  = 64
	maxLabel   = 256 // of a key, and of a value
	maxReasons = 64
	maxNamed   = 1000 // resources that one cell refuses, and that have drifted in it
)

// checkReport refuses what no proxy says, and cuts what is too much.
func (f *Fleet) checkReport(m *controlv1.ReportRequest) error {
	member := m.GetMember()
	if len(member.GetLabels()) > maxLabels {
		return fault.Newf(fault.Invalid, fault.Field, "member.labels: %d are too many; want %d at most", len(member.GetLabels()), maxLabels)
	}
	if member.GetId() == "" {
		return fault.New(fault.Invalid, fault.Field, "member.id: it is required")
	}
	texts := map[string]struct {
		text string
		max  int
	}{
		"member.id": {member.GetId(), maxID}, "member.address": {member.GetAddress(), maxAddress}, "build": {m.GetBuild(), maxBuild},
	}
	for field, t := range texts {
		if err := checkText(t.text, t.max); err != nil {
			return fault.Newf(fault.Invalid, fault.Field, "%s: %v", field, err)
		}
	}
	for key, value := range member.GetLabels() {
		if err := errors.Join(checkText(key, maxLabel), checkText(value, maxLabel)); err != nil {
			return fault.Newf(fault.Invalid, fault.Field, "member.labels: %v", err)
		}
	}
	m.Reasons = m.GetReasons()[:min(len(m.GetReasons()), maxReasons)]
	for _, cell := range m.GetCells() {
		if err := f.checkPartition(cell.GetPartition()); err != nil {
			return fault.Newf(fault.Invalid, fault.Field, "cells: %v", err)
		}
		cell.Rejections = cell.GetRejections()[:min(len(cell.GetRejections()), maxNamed)]
		cell.Drifted = cell.GetDrifted()[:min(len(cell.GetDrifted()), maxNamed)]
	}
	return nil
}

// checkText refuses text that is too long, or that would make a mess of a terminal or a log.
func checkText(text string, longest int) error {
	switch {
	case len(text) > longest:
		return fmt.Errorf("%d bytes; want %d at most", len(text), longest)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl):
		return errors.New("want text without control characters")
	}
	return nil
}
