package controller

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
)

// atATime is how many namespaces are waited for at once to be drained.
const atATime = 256

// remover removes namespaces that were drained in waves. What is to be removed is in the configuration, so that the next
// leader goes on, and what takes the drain back takes back the removal.
type remover struct {
	*Controller
	roots    []ident.Hash        // of the stable partitions as they were looked through, by partition
	asked    [][]snapshot.Object // the namespaces in them whose removal is asked for
	underWay map[ident.Hash]bool // by version
	done     chan ident.Hash
}

// remove removes what is to be removed until ctx ends.
func (c *Controller) remove(ctx context.Context) {
	moved, stop := c.cfg.Store.Watch()
	defer stop()
	r := &remover{Controller: c, underWay: map[ident.Hash]bool{}, done: make(chan ident.Hash, atATime)}
	defer func() {
		for range r.underWay {
			<-r.done
		}
	}()
	for {
		if state := c.cfg.Store.Released(); state != nil {
			r.look(state)
			r.begin(ctx, state)
		}
		select {
		case <-moved:
		case version := <-r.done:
			delete(r.underWay, version)
		case <-ctx.Done():
			return
		}
	}
}

// look finds what is to be removed in the partitions that have changed.
func (r *remover) look(state *release.State) {
	stable := state.Stable()
	if r.roots == nil {
		r.roots, r.asked = make([]ident.Hash, stable.Partitions()), make([][]snapshot.Object, stable.Partitions())
	}
	for p := range ident.Partition(stable.Partitions()) {
		c := stable.Collection(p)
		if c.Root() == r.roots[p] {
			continue
		}
		r.roots[p], r.asked[p] = c.Root(), nil
		for i := range c.Len() {
			if o := c.At(i); removal(o.Data) != nil {
				r.asked[p] = append(r.asked[p], o)
			}
		}
	}
}

// begin begins to remove what every owner is given as drained and nobody has changed since.
func (r *remover) begin(ctx context.Context, state *release.State) {
	for _, o := range slices.Concat(r.asked...) {
		if len(r.underWay) == atATime {
			return
		}
		if newest, ok := state.Head().Object(o.Name); r.underWay[o.Hash] || !ok || newest.Hash != o.Hash {
			continue
		}
		r.underWay[o.Hash] = true
		go func() {
			defer func() { r.done <- o.Hash }()
			for !r.drained(ctx, o) || !r.commit(ctx, o) {
				if !pause(ctx, retryAfter) {
					return
				}
			}
		}()
	}
}

// drained waits until every owner has drained a namespace, or it is not to be removed any more.
func (r *remover) drained(ctx context.Context, o snapshot.Object) bool {
	err := r.cfg.Fleet.WatchStatus(ctx, o.ShortName(), func(st *configv1.NamespaceStatus) bool {
		if newest, ok := r.cfg.Store.Released().Head().Object(o.Name); !ok || newest.Hash != o.Hash {
			return true
		}
		return st.GetVersion() == o.Hash.String() &&
			!slices.ContainsFunc(st.GetOwners(), func(o *configv1.OwnerStatus) bool { return o.GetStage() < configv1.Stage_STAGE_ACCEPTED })
	})
	return err == nil || fault.Is(err, fault.Namespace)
}

// commit removes a namespace unless it has changed, and reports whether that is settled.
func (r *remover) commit(ctx context.Context, o snapshot.Object) bool {
	asked := removal(o.Data)
	began := time.Now()
	commit, err := r.cfg.Store.Commit(ctx, release.Order{Team: snapshot.TeamOf(o.Data), AtOnce: true}, func(base *snapshot.Tree, _ uint64) ([]snapshot.Set, error) {
		if newest, ok := base.Object(o.Name); !ok || newest.Hash != o.Hash {
			return nil, nil
		}
		return []snapshot.Set{{Name: o.Name, Author: asked.GetAuthor(), Message: asked.GetMessage(), RequestID: asked.GetRequestId()}}, nil
	})
	switch {
	case err == nil && commit.Changed:
		r.log.Info("namespace removed after it was drained", "namespace", o.ShortName(), "snapshot", commit.Tree.Version(), "took", time.Since(began))
	case err != nil && ctx.Err() == nil:
		r.log.Warn("a namespace that was drained is not removed yet", "namespace", o.ShortName(), telemetry.Error(err))
	}
	return err == nil
}

// removal is what a marshalled NamespaceConfig tells of a removal that was asked for; nil when it tells of none, as
// nearly all do, which are not decoded.
func removal(data []byte) *configv1.Removal {
	const removalField = 10
	for rest := data; len(rest) > 0; {
		field, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return nil
		}
		m := protowire.ConsumeFieldValue(field, kind, rest[n:])
		if m < 0 {
			return nil
		}
		if field != removalField {
			rest = rest[n+m:]
			continue
		}
		config := &configv1.NamespaceConfig{}
		if err := proto.Unmarshal(data, config); err != nil {
			return nil
		}
		return config.GetRemoval()
	}
	return nil
}
