package client

import (
	"context"
	"fmt"
	"sync"
	"time"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// Owners returns the addresses of a namespace's owners, by rank.
type Owners func(ctx context.Context, namespace string) ([]string, error)

// OwnersFromAdmin asks the control plane.
func OwnersFromAdmin(admin adminv1.AdminServiceClient) Owners {
	return func(ctx context.Context, namespace string) ([]string, error) {
		resp, err := admin.GetOwners(ctx, &adminv1.GetOwnersRequest{Namespace: namespace})
		if err != nil {
			return nil, err
		}
		var addresses []string
		for _, m := range resp.GetOwners() {
			addresses = append(addresses, m.GetAddress())
		}
		return addresses, nil
	}
}

// OwnersFromAssignment looks into the fleet's assignment, which latest returns.
func OwnersFromAssignment(latest func(context.Context) (*configv1.Assignment, error)) Owners {
	return func(ctx context.Context, namespace string) ([]string, error) {
		a, err := latest(ctx)
		if err != nil {
			return nil, err
		}
		if len(a.GetPartitions()) == 0 {
			return nil, fmt.Errorf("assignment %d has no partitions", a.GetEpoch())
		}
		p := ident.PartitionOf(namespace, uint32(len(a.GetPartitions())))
		var addresses []string
		for _, i := range a.GetPartitions()[p].GetOwners() {
			if int(i) >= len(a.GetMembers()) {
				return nil, fmt.Errorf("assignment %d: %s is owned by member %d of %d", a.GetEpoch(), p, i, len(a.GetMembers()))
			}
			addresses = append(addresses, a.GetMembers()[i].GetAddress())
		}
		return addresses, nil
	}
}

const (
	ownersKept   = time.Minute // a proxy that no longer owns a namespace forwards: old knowledge costs a hop, no error
	failureKept  = time.Second
	lookupTime   = time.Second
	ownersCached = 10_000 // namespaces
)

// ownerCache remembers owners. Concurrent callers may ask the source for the same namespace at once; that is harmless.
type ownerCache struct {
	source Owners

	// mu guards known.
	mu    sync.Mutex
	known map[string]knownOwners
}

type knownOwners struct {
	addresses []string
	until     time.Time
}

func newOwnerCache(source Owners) *ownerCache {
	return &ownerCache{source: source, known: map[string]knownOwners{}}
}

// of returns the owners, or none when the source does not tell. The slice must not be changed.
func (c *ownerCache) of(ctx context.Context, namespace string) []string {
	c.mu.Lock()
	k, ok := c.known[namespace]
	c.mu.Unlock()
	if ok && time.Now().Before(k.until) {
		return k.addresses
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	addresses, err := c.source(ctx, namespace)
	k = knownOwners{addresses: addresses, until: time.Now().Add(ownersKept)}
	if err != nil || len(addresses) == 0 {
		k.until = time.Now().Add(failureKept)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= ownersCached {
		clear(c.known)
	}
	c.known[namespace] = k
	return k.addresses
}

// forget makes the next call ask the source.
func (c *ownerCache) forget(namespace string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	delete(c.known, namespace)
	c.mu.Unlock()
}
