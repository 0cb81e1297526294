package server

import (
	"github.com/prism-gateway/prism/controlplane/quota"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
)

// quotasOf are the quotas of a configuration file.
func quotasOf(c *bootstrapv1.QuotaConfig) quota.Quotas {
	of := func(q *bootstrapv1.Quota) quota.Bounds {
		return quota.Bounds{
			Namespaces: uint64(q.GetNamespaces()), Bytes: q.GetConfigBytes(), ChangesPerMinute: q.GetChangesPerMinute(), Weight: q.GetWeight(),
		}
	}
	out := quota.Quotas{Default: of(c.GetDefault()), Teams: map[string]quota.Bounds{}}
	for team, q := range c.GetTeams() {
		out.Teams[team] = of(q)
	}
	return out
}
