package adminapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/ident"
)

// defaultLease is how long a reservation holds unless it is renewed.
const defaultLease = 24 * time.Hour

// ReserveName keeps a name for whoever has the token that it returns.
func (s *Server) ReserveName(ctx context.Context, in *controlv1.ReserveNameRequest) (*controlv1.ReserveNameResponse, error) {
	found := constraint.Check(in)
	for _, v := range admission.Validate(&configv1.NamespaceRequest{Namespace: in.GetNamespace(), Team: in.GetTeam()}) {
		if v.Field == "namespace" || v.Field == "team" {
			found = append(found, v)
		}
	}
	if err := invalid(found); err != nil {
		return nil, err
	}
	if _, err := s.head(); err != nil {
		return nil, err
	}
	lease := defaultLease
	if in.GetLease() != nil {
		lease = in.GetLease().AsDuration()
	}
	token := rand.Text()
	allowed := s.allowance(false)
	made, err := s.cfg.Store.ReserveName(ctx, &recordv1.NameReservation{
		Namespace: in.GetNamespace(), Team: in.GetTeam(), TokenHash: tokenHash(token).Bytes(),
		Author: in.GetNote().GetAuthor(), Message: in.GetNote().GetMessage(), LeaseSeconds: int64(lease / time.Second),
	}, func(base *snapshot.Tree) error {
		if err := s.cfg.Quotas.CheckReservation(base, in.GetTeam(), s.cfg.Store.ReservedBy); err != nil {
			return err
		}
		return allowed.count(map[string]int{in.GetTeam(): 1})
	})
	allowed.settle(err)
	s.audit(ctx, "reserve", in.GetNamespace(), in.GetTeam(), in.GetNote(), err)
	if err != nil {
		return nil, err
	}
	return &controlv1.ReserveNameResponse{Reservation: reservedName(made), Token: token}, nil
}

// tokenHash is what is kept of a token. Tokens are random, so that a plain hash cannot be searched.
func tokenHash(token string) ident.Hash { return ident.HashOf([]byte(token)) }

// tokenHashes are the hashes of the tokens that came with a change, by namespace.
func tokenHashes(tokens map[string]string) map[string]ident.Hash {
	hashes := make(map[string]ident.Hash, len(tokens))
	for name, token := range tokens {
		if token != "" {
			hashes[name] = tokenHash(token)
		}
	}
	return hashes
}

// RenewName prolongs a reservation for its holder.
func (s *Server) RenewName(ctx context.Context, in *controlv1.RenewNameRequest) (*controlv1.RenewNameResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	if _, err := s.head(); err != nil {
		return nil, err
	}
	renewed, err := s.cfg.Store.RenewName(ctx, in.GetNamespace(), tokenHash(in.GetToken()))
	s.audit(ctx, "renew", in.GetNamespace(), renewed.GetTeam(), nil, err)
	if err != nil {
		return nil, err
	}
	return &controlv1.RenewNameResponse{Reservation: reservedName(renewed)}, nil
}

// ReleaseName frees a name, for its holder or, with a note that says why, for an operator.
func (s *Server) ReleaseName(ctx context.Context, in *controlv1.ReleaseNameRequest) (*controlv1.ReleaseNameResponse, error) {
	found := constraint.Check(in)
	if in.GetToken() == "" && in.GetNote().GetMessage() == "" {
		found = append(found, fault.Violation{
			Field: "note.message", Rule: "release_name.why", Text: "say why: without its token the name is taken away from whoever reserved it",
		})
	}
	if err := invalid(found); err != nil {
		return nil, err
	}
	if _, err := s.head(); err != nil {
		return nil, err
	}
	operation, hash := "take away", ident.Hash{}
	if in.GetToken() != "" {
		operation, hash = "release", tokenHash(in.GetToken())
	}
	was, err := s.cfg.Store.ReleaseName(ctx, in.GetNamespace(), hash)
	s.audit(ctx, operation, in.GetNamespace(), was.GetTeam(), in.GetNote(), err)
	if err != nil {
		return nil, err
	}
	return &controlv1.ReleaseNameResponse{}, nil
}

// audit logs who did what to a reservation, and what came of it.
func (s *Server) audit(ctx context.Context, operation, namespace, team string, note *controlv1.ChangeNote, err error) {
	outcome := "done"
	if err != nil {
		outcome = string(cmp.Or(fault.From(err).Reason, "failed"))
	}
	s.cfg.Log.Info("reservation of a name", "operation", operation, "namespace", namespace, "team", team, "author", note.GetAuthor(),
		"note", note.GetMessage(), "outcome", outcome, "request_id", faultgrpc.RequestID(ctx))
}

// ListReservedNames returns a page of reservations by name.
func (s *Server) ListReservedNames(_ context.Context, in *controlv1.ListReservedNamesRequest) (*controlv1.ListReservedNamesResponse, error) {
	if err := check(in); err != nil {
		return nil, err
	}
	after, err := pageAfter(in.GetPageToken(), "reserved")
	if err != nil {
		return nil, err
	}
	if _, err := s.head(); err != nil {
		return nil, err
	}
	all := s.cfg.Store.ReservedNames()
	out := &controlv1.ListReservedNamesResponse{TotalCount: uint64(len(all))}
	first, _ := slices.BinarySearchFunc(all, after+"\x00", func(r *recordv1.NameReservation, name string) int { return cmp.Compare(r.GetNamespace(), name) })
	size := pageSize(in.GetPageSize())
	for _, r := range all[first:] {
		if len(out.Reservations) == size {
			out.NextPageToken = pageToken(out.Reservations[size-1].GetNamespace(), "reserved")
			break
		}
		out.Reservations = append(out.Reservations, reservedName(r))
	}
	return out, nil
}

// reservedName is what anybody is told of a reservation.
func reservedName(r *recordv1.NameReservation) *controlv1.ReservedName {
	lease := time.Duration(r.GetLeaseSeconds()) * time.Second
	return &controlv1.ReservedName{
		Namespace: r.GetNamespace(), Team: r.GetTeam(), Author: r.GetAuthor(), Message: r.GetMessage(), ReservedAt: r.GetReservedAt(),
		RenewAt: timestamppb.New(r.GetRenewedAt().AsTime().Add(lease / 2)), ExpiresAt: r.GetExpiresAt(),
	}
}
