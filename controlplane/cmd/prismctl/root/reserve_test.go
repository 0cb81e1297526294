package root_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

func held(name string) *controlv1.ReservedName {
	return &controlv1.ReservedName{Namespace: name, Team: "accounts", Author: "ada", Message: "for May", ReservedAt: moment, RenewAt: moment, ExpiresAt: moment}
}

func (p *peer) ReserveName(_ context.Context, req *controlv1.ReserveNameRequest) (*controlv1.ReserveNameResponse, error) {
	p.note(req)
	return &controlv1.ReserveNameResponse{Reservation: held(req.GetNamespace()), Token: "TOKEN-1"}, nil
}

func (p *peer) RenewName(_ context.Context, req *controlv1.RenewNameRequest) (*controlv1.RenewNameResponse, error) {
	p.note(req)
	return &controlv1.RenewNameResponse{Reservation: held(req.GetNamespace())}, nil
}

func (p *peer) ReleaseName(_ context.Context, req *controlv1.ReleaseNameRequest) (*controlv1.ReleaseNameResponse, error) {
	p.note(req)
	return &controlv1.ReleaseNameResponse{}, nil
}

// ListReservedNames has two pages.
func (p *peer) ListReservedNames(_ context.Context, req *controlv1.ListReservedNamesRequest) (*controlv1.ListReservedNamesResponse, error) {
	p.note(req)
	if req.GetPageToken() == "" {
		return &controlv1.ListReservedNamesResponse{Reservations: []*controlv1.ReservedName{held("one")}, NextPageToken: "2", TotalCount: 2}, nil
	}
	return &controlv1.ListReservedNamesResponse{Reservations: []*controlv1.ReservedName{held("two")}, TotalCount: 2}, nil
}

func TestReservations(t *testing.T) {
	note := &controlv1.ChangeNote{Author: "tester", Message: "because"}
	two := request + "---\n" + strings.Replace(request, "user-profiles", "orders", 1)
	for name, tc := range map[string]struct {
		args, in string
		want     proto.Message // what is asked
		out      string
	}{
		"a name is reserved and its token told": {"namespace reserve ns-a --team accounts --lease 2h -m because", "",
			&controlv1.ReserveNameRequest{Namespace: "ns-a", Team: "accounts", Lease: durationpb.New(2 * time.Hour), Note: note}, "TOKEN-1"},
		"a reservation is renewed":     {"namespace renew ns-a --token T", "", &controlv1.RenewNameRequest{Namespace: "ns-a", Token: "T"}, "ns-a"},
		"a reservation is given up":    {"namespace unreserve ns-a --token T", "", &controlv1.ReleaseNameRequest{Namespace: "ns-a", Token: "T", Note: &controlv1.ChangeNote{Author: "tester"}}, "ns-a is free"},
		"an operator takes a name":     {"namespace unreserve ns-a --take-away -m because", "", &controlv1.ReleaseNameRequest{Namespace: "ns-a", Note: note}, "ns-a is free"},
		"all pages are listed":         {"namespace reserved", "", &controlv1.ListReservedNamesRequest{PageSize: 1000}, "two"},
		"taking away needs a reason":   {"namespace unreserve ns-a --take-away", "", nil, "--message"},
		"renewing needs the token":     {"namespace renew ns-a", "", nil, "PRISM_RESERVATION_TOKEN"},
		"several namespaces, one name": {"namespace apply -f - --reservation-token T", two, nil, "NAME=TOKEN"},
		"a token of another namespace": {"namespace apply -f - --reservation-token x-y-z=T", two, nil, "x-y-z"},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t)
			r := run(t, p, tc.in, false, strings.Fields(tc.args)...)
			if tc.want == nil {
				if r.code != 2 || len(p.asked) != 0 || !strings.Contains(r.err, tc.out) {
					t.Errorf("exit code %d, %s, asked %v", r.code, r.err, p.asked)
				}
				return
			}
			if r.code != 0 || !strings.Contains(r.out, tc.out) || len(p.asked) == 0 {
				t.Fatalf("exit code %d: %s%s", r.code, r.out, r.err)
			}
			if diff := cmp.Diff(tc.want, p.asked[0], protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("apply brings the tokens", func(t *testing.T) {
		for args, want := range map[string]map[string]string{
			"--reservation-token T": {"user-profiles": "T"},
			"--reservation-token user-profiles=T --reservation-token orders=U": {"user-profiles": "T", "orders": "U"},
		} {
			in := request
			if len(want) == 2 {
				in = two
			}
			p := serve(t)
			run(t, p, in, false, append(strings.Fields("namespace apply -f -"), strings.Fields(args)...)...)
			if len(p.asked) == 0 {
				t.Fatal("nothing was asked")
			}
			if diff := cmp.Diff(want, p.asked[0].(*controlv1.ApplyNamespacesRequest).GetReservationTokens()); diff != "" {
				t.Error(diff)
			}
		}
	})
}
