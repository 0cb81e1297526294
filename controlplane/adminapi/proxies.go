package adminapi

import (
	"context"
	"slices"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// ListProxies returns a page of the fleet by id.
func (s *Server) ListProxies(ctx context.Context, in *adminv1.ListProxiesRequest) (*adminv1.ListProxiesResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	after, err := pageAfter(in.GetPageToken(), "proxies")
	if err != nil {
		return nil, err
	}
	size := pageSize(in.GetPageSize())
	page, total := s.cfg.Fleet.Proxies(ctx, after, size+1)
	assignment := s.cfg.Fleet.Assignment()
	out := &adminv1.ListProxiesResponse{Proxies: page, TotalCount: uint64(total), Epoch: assignment.GetEpoch()}
	for _, p := range assignment.GetPartitions() {
		if len(p.GetLoading()) > 0 {
			out.Moving = true
			break
		}
	}
	if len(page) > size {
		out.Proxies = page[:size]
		out.NextPageToken = pageToken(page[size-1].GetMember().GetId(), "proxies")
	}
	return out, nil
}

// GetProxy returns one proxy with its partitions, as it is now or with what it served at a time in the past. A proxy that
// has left the fleet can still be asked for what it served.
func (s *Server) GetProxy(ctx context.Context, in *adminv1.GetProxyRequest) (*adminv1.GetProxyResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if in.GetAt() == nil {
		proxy, partitions, ok := s.cfg.Fleet.Proxy(ctx, in.GetId())
		if !ok {
			return nil, fault.Newf(fault.NotFound, fault.Object, "there is no proxy %q", in.GetId())
		}
		if in.GetNamespace() != "" {
			tree, err := s.head()
			if err != nil {
				return nil, err
			}
			only := uint32(ident.PartitionOf(in.GetNamespace(), tree.Partitions()))
			partitions = slices.DeleteFunc(partitions, func(p *adminv1.ProxyPartition) bool { return p.GetPartition() != only })
		}
		return &adminv1.GetProxyResponse{Proxy: proxy, Partitions: partitions}, nil
	}
	at := in.GetAt().AsTime()
	if err := in.GetAt().CheckValid(); err != nil || at.After(s.cfg.Now()) {
		return nil, fault.New(fault.Invalid, fault.Field, "at: want a time in the past")
	}
	served, err := s.cfg.Fleet.Served(ctx, in.GetId(), at, in.GetNamespace())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetProxyResponse{Proxy: &adminv1.Proxy{Member: &configv1.Member{Id: in.GetId()}}, Served: served}, nil
}

// GetOwners says who owns a namespace's partition. The namespace need not exist.
func (s *Server) GetOwners(_ context.Context, in *adminv1.GetOwnersRequest) (*adminv1.GetOwnersResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	tree, err := s.head()
	if err != nil {
		return nil, err
	}
	p := ident.PartitionOf(in.GetNamespace(), tree.Partitions())
	owners, loading, epoch := s.cfg.Fleet.Owners(p)
	return &adminv1.GetOwnersResponse{Partition: uint32(p), Owners: owners, Loading: loading, Epoch: epoch}, nil
}
