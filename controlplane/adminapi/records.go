package adminapi

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// drafts are the records that edits under way made. The store applies several edits before it writes any, so that an
// edit may see a namespace whose record is nowhere yet but here.
type drafts struct {
	mu   sync.Mutex // guards made, and ended of all records
	made map[ident.Hash]*recordv1.NamespaceRecord
}

// records reads and keeps NamespaceRecords, which do not change, for the time of one call.
type records struct {
	store  store
	drafts *drafts

	mine  []ident.Hash // made by this call; guarded by drafts.mu
	ended bool         // guarded by drafts.mu

	mu   sync.Mutex // guards seen
	seen map[ident.Hash]*recordv1.NamespaceRecord
}

// records returns a reader, to be ended with the call.
func (s *Server) records() *records {
	return &records{store: s.cfg.Store, drafts: &s.drafts, seen: map[ident.Hash]*recordv1.NamespaceRecord{}}
}

// draft shows a record to other edits until end. A call that was given up may still be evaluated; it shows no more.
func (r *records) draft(hash ident.Hash, record *recordv1.NamespaceRecord) {
	r.drafts.mu.Lock()
	defer r.drafts.mu.Unlock()
	if r.ended {
		return
	}
	if r.drafts.made == nil {
		r.drafts.made = map[ident.Hash]*recordv1.NamespaceRecord{}
	}
	r.drafts.made[hash] = record
	r.mine = append(r.mine, hash)
}

// end takes the call's drafts away: they are stored, or came to nothing.
func (r *records) end() {
	r.drafts.mu.Lock()
	defer r.drafts.mu.Unlock()
	r.ended = true
	for _, hash := range r.mine {
		delete(r.drafts.made, hash)
	}
}

const readers = 16

// prefetch reads the records of namespaces that are there already, side by side, so that an edit need not wait for them.
func (r *records) prefetch(ctx context.Context, tree *snapshot.Tree, wants []want) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(readers)
	for _, w := range wants {
		if o, ok := tree.Namespace(w.request.GetNamespace()); ok {
			work.Go(func() error {
				_, _, err := r.of(ctx, o)
				return err
			})
		}
	}
	return work.Wait()
}

// of returns the configuration and the record of a namespace.
func (r *records) of(ctx context.Context, o snapshot.Object) (*configv1.NamespaceConfig, *recordv1.NamespaceRecord, error) {
	config, err := read[configv1.NamespaceConfig](o.Name, o.Data)
	if err != nil {
		return nil, nil, err
	}
	hash, err := ident.HashFrom(config.GetRecordHash())
	if err != nil {
		return nil, nil, fmt.Errorf("adminapi: %s: %w", o.Name, err)
	}
	if record := r.known(hash); record != nil {
		return config, record, nil
	}
	data, err := r.store.Object(ctx, hash)
	if fault.Is(err, fault.Object) {
		return nil, nil, fault.Wrap(err, fault.Unavailable, fault.TxConflict, "another change of the namespace is under way: try again").
			WithRetry(100 * time.Millisecond).WithOutcome(fault.NotApplied)
	} else if err != nil {
		return nil, nil, err
	}
	record, err := read[recordv1.NamespaceRecord](o.Name, data)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[hash] = record
	return config, record, nil
}

func (r *records) known(hash ident.Hash) *recordv1.NamespaceRecord {
	r.mu.Lock()
	record := r.seen[hash]
	r.mu.Unlock()
	if record != nil {
		return record
	}
	r.drafts.mu.Lock()
	defer r.drafts.mu.Unlock()
	return r.drafts.made[hash]
}
