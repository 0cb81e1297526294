package keyvalue

import (
	"context"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// DeleteRange names a run of keys of one id to be removed.
type DeleteRange struct {
	ID     []byte
	Prefix []byte
	Start  []byte // inclusive
	End    []byte // exclusive
	// All must be set to remove all keys of the id, and only then.
	All   bool
	Token []byte
}

// DeleteRange removes items until four fifths of the time are over or MaxPage are gone, and returns how many it
// removed and the token to go on with, nil at the end. It is not atomic; items written meanwhile may stay or go. An
// error means that this call removed nothing that it knows of.
func (s *Store) DeleteRange(ctx context.Context, q DeleteRange) (deleted uint64, next []byte, err error) {
	if s.scanner == nil {
		return 0, nil, Missing(ScanKeys)
	}
	run := Scan{ID: q.ID, Prefix: q.Prefix, Start: q.Start, End: q.End, KeysOnly: true, Token: q.Token, deletes: true}
	if open := len(q.Prefix) == 0 && len(q.Start) == 0 && len(q.End) == 0; open != q.All {
		return 0, nil, Invalid(violation("all", "delete_range.all", "must be set to remove all keys of the id, and not be set with a prefix, start or end"))
	}
	for deleted < MaxPage {
		page, err := s.Scan(ctx, run)
		if err == nil && len(page.Items) > 0 {
			var gone uint64
			gone, err = s.deleteItems(ctx, page.Items)
			deleted += gone
		}
		if err != nil && deleted > 0 {
			return deleted, s.resume(run), nil // what is left of this page comes again
		}
		if err != nil || page.Next == nil {
			return deleted, nil, withOutcome(err)
		}
		run.Token = page.Next
		if page.Cut {
			break
		}
	}
	return deleted, run.Token, nil
}

// resume is a token for going on where run began: its own, or that of the beginning.
func (s *Store) resume(run Scan) []byte {
	if len(run.Token) > 0 {
		return run.Token
	}
	return s.tokens.seal(run.digest(), nil, s.cfg.Now())
}

// deleteItems counts what is gone, also when some of it could not be removed.
func (s *Store) deleteItems(ctx context.Context, items []driver.Item) (gone uint64, err error) {
	for len(items) > 0 {
		n := min(len(items), MaxBatch)
		writes := make([]driver.Write, n)
		for i := range writes {
			writes[i] = driver.Write{Op: driver.Delete, Name: items[i].Name}
		}
		if err := s.cfg.Breaker.Begin(); err != nil {
			return gone, err
		}
		for _, r := range s.writeAll(ctx, writes) {
			switch {
			case r.Err != nil:
				if f := fault.From(r.Err); err == nil || f.Outcome != fault.NotApplied {
					err = f // one that may be done says more than one that is not
				}
			case r.Existed:
				gone++
			}
		}
		if err != nil {
			return gone, err
		}
		items = items[n:]
	}
	return gone, nil
}
