package store

import (
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

const (
	maxRecord = 1450 << 10 // bytes of changes in one snapshot's record, which must fit into one request
	maxBeside = 48 << 10   // bytes of head that fit beside the largest record
)

// plan is what a batch, or a step of a release, makes of a head.
type plan struct {
	draft   *release.Draft // of a batch
	next    *release.State // what follows, once the draft is done
	ended   []*recordv1.Release
	fence   *fence // that must hold; nil for none
	changes []*recordv1.Change
	records map[ident.Hash][]byte
	guards  []*guard
	answers map[*request]answer                  // refused
	names   map[string]*recordv1.NameReservation // that it makes, renews or, nil, ends
	done    []*request                           // part of the plan
	changed map[*request]bool                    // of those that are part of it
	waved   map[*request]bool                    // go in waves, of those
	rest    []*request                           // did not fit
}

// evaluate applies requests in order, each to the tree that the one before left. One that fails is left out.
func (s *Store) evaluate(st *state, batch []*request) *plan {
	p := &plan{draft: st.released.Draft(s.cfg.Now()), waved: map[*request]bool{}, records: map[ident.Hash][]byte{}, names: map[string]*recordv1.NameReservation{}, answers: map[*request]answer{}, changed: map[*request]bool{}}
	most := maxRecord
	if active := st.released.Active(); len(active) > 0 {
		most -= max(0, proto.Size(&recordv1.Head{Releases: active})-maxBeside)
	}
	size := 0
	for i, r := range batch {
		e, err := s.apply(p, r)
		if errors.Is(err, release.ErrApart) {
			p.rest = batch[i:]
			break
		}
		added := 0
		var before *recordv1.Change
		if n := len(p.changes); n > 0 {
			before = p.changes[n-1]
		}
		for _, c := range e.changes {
			n, bad := storedSize(before, c)
			if bad != nil && err == nil {
				err = fault.Wrap(bad, fault.Invalid, fault.Field, "author, message and request id must be UTF-8")
			}
			added += n
			before = c
		}
		if err == nil && added > most {
			err = fault.Newf(fault.Invalid, fault.TooLarge, "%d changes are too many for one snapshot: make several of them", len(e.changes))
		}
		if err != nil {
			p.answers[r] = answer{err: err}
			continue
		}
		if size += added; size > most {
			p.rest = batch[i:]
			break
		}
		p.done = append(p.done, r)
		maps.Copy(p.names, e.names)
		if len(e.changes) == 0 {
			continue
		}
		p.changed[r] = true
		p.waved[r] = slices.ContainsFunc(e.changes, func(c *recordv1.Change) bool { return c.InRelease })
		p.draft, p.changes = e.draft, append(p.changes, e.changes...)
		for h, data := range e.records {
			p.records[h] = data
		}
		if r.guard != nil {
			p.guards = append(p.guards, r.guard)
		}
	}
	return p
}
