package store

import (
	"testing"
	"time"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TestFreedNameStaysFree lets a read of all reservations be overtaken by the watch.
func TestFreedNameStaysFree(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	made := &recordv1.NameReservation{Namespace: "accounts", Team: "ledger", ExpiresAt: timestamppb.New(now.Add(time.Hour))}
	for name, test := range map[string]struct {
		freed   int64 // the revision, 0 for never
		written int64 // the revision of the reservation that a read at revision 5 found
		taken   bool  // the read
	}{
		"freed after the read":                    {7, 3, false},
		"freed and reserved anew before the read": {4, 5, true},
		"never freed":                             {0, 3, true},
	} {
		t.Run(name, func(t *testing.T) {
			var n names
			n.put("accounts", made, 3)
			if test.freed > 0 {
				n.put("accounts", nil, test.freed)
			}
			if taken := n.refresh(map[string]heldName{"accounts": {made, test.written}}, 5); taken != test.taken {
				t.Errorf("the read was taken over: %v, want %v", taken, test.taken)
			}
			if held := n.get("accounts", now) != nil; held != test.taken {
				t.Errorf("the name is held: %v, want %v", held, test.taken)
			}
		})
	}
}
