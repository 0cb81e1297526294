package adminapi

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/prism-gateway/prism/controlplane/quota"
	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// allowance holds one change against the bounds of its teams. An edit may ask it several times; what it counted in the
// end came to nothing unless the change was recorded.
type allowance struct {
	server  *Server
	shrink  bool           // the change may remove much
	counted map[string]int // changes of each team
}

func (s *Server) allowance(shrink bool) *allowance {
	return &allowance{server: s, shrink: shrink, counted: map[string]int{}}
}

// admit refuses sets that are more than their teams may have or do, that make a piece too large, or that remove too much.
func (a *allowance) admit(base *snapshot.Tree, sets []snapshot.Set) error {
	if err := a.server.bounds(base, sets, a.shrink); err != nil {
		return err
	}
	counts := map[string]int{}
	for _, set := range sets {
		if set.Data != nil {
			counts[snapshot.TeamOf(set.Data)]++
		}
	}
	return a.count(counts)
}

// bounds refuses sets that are more than their teams may have, that make a piece too large, or that remove too much.
func (s *Server) bounds(base *snapshot.Tree, sets []snapshot.Set, shrink bool) error {
	if err := quota.CheckSizes(base, sets); err != nil {
		return err
	}
	if err := s.cfg.Quotas.Check(base, sets, s.cfg.Store.ReservedBy); err != nil {
		return err
	}
	return guard(base, lossOf(base, sets), shrink)
}

// count makes what is counted be counts, or refuses what is more and leaves what was counted.
func (a *allowance) count(counts map[string]int) error {
	now := a.server.cfg.Now()
	for _, team := range slices.Sorted(maps.Keys(counts)) {
		more := counts[team] - a.counted[team]
		bounds := a.server.cfg.Quotas.Of(team)
		if more > 0 {
			if err := a.server.rates.Take(team, bounds, more, now); err != nil {
				return err
			}
		} else {
			a.server.rates.Count(team, bounds, more, now)
		}
		a.counted[team] = counts[team]
	}
	return nil
}

// settle gives back what was counted for a change that was not made.
func (a *allowance) settle(err error) {
	if err == nil || fault.From(err).Outcome == fault.OutcomeUnknown {
		return
	}
	for team, n := range a.counted {
		a.server.rates.Count(team, a.server.cfg.Quotas.Of(team), -n, a.server.cfg.Now())
	}
}

// headroom says what a change would leave of the bounds that it comes near.
func (s *Server) headroom(base *snapshot.Tree, sets []snapshot.Set) []string {
	return slices.Concat(s.cfg.Quotas.Headroom(base, sets, s.cfg.Store.ReservedBy), quota.SizeHeadroom(base, sets))
}

// ordered is an order of a team, whose share of the commits it takes by so many objects.
func (s *Server) ordered(order release.Order, team string, objects int) release.Order {
	order.Team, order.Weight, order.Objects = team, int(s.cfg.Quotas.Of(team).Weight), objects
	return order
}

// mostly is the team that most of the requests belong to, the first of several.
func mostly(wants []want) string {
	team, count := "", map[string]int{}
	for _, w := range wants {
		count[w.request.GetTeam()]++
	}
	for _, w := range wants {
		if t := w.request.GetTeam(); count[t] > count[team] {
			team = t
		}
	}
	return team
}

// Run counts what other replicas record against the rates of teams, until ctx ends. Of snapshots that follow each other
// quickly it may see only the last.
func (s *Server) Run(ctx context.Context) error {
	moved, stop := s.cfg.Store.Watch()
	defer stop()
	seen := s.cfg.Store.Recorded().GetVersion()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
		}
		tree, record := s.cfg.Store.Head(), s.cfg.Store.Recorded()
		if record.GetVersion() > seen && seen > 0 && !s.cfg.Store.Own(record) {
			s.countForeign(tree, record)
		}
		seen = record.GetVersion()
	}
}

// countForeign counts what a snapshot of another replica made or changed; what it deletes or takes back is free.
func (s *Server) countForeign(tree *snapshot.Tree, record *recordv1.Snapshot) {
	for _, c := range record.GetChanges() {
		if c.GetKind() != recordv1.ChangeKind_CHANGE_KIND_CREATE && c.GetKind() != recordv1.ChangeKind_CHANGE_KIND_UPDATE {
			continue
		}
		o, ok := tree.Object(c.GetName())
		if !ok || !strings.HasPrefix(c.GetName(), snapshot.NamespacePrefix) {
			continue
		}
		config, err := read[configv1.NamespaceConfig](o.Name, o.Data)
		if err != nil || config.GetDraining() {
			continue
		}
		s.rates.Count(config.GetTeam(), s.cfg.Quotas.Of(config.GetTeam()), 1, s.cfg.Now())
	}
}
