package controller

import (
	"slices"
	"testing"

	"github.com/prism-gateway/prism/controlplane/release/gate"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

func TestWhoDiedAfterItWasReached(t *testing.T) {
	lease := func(id string, draining bool) *recordv1.MemberLease {
		return &recordv1.MemberLease{Member: &configv1.Member{Id: id, Draining: draining}}
	}
	cells := []gate.Cell{{Proxy: "dies", Reached: true}, {Proxy: "drains", Reached: true}, {Proxy: "lives", Reached: true}, {Proxy: "waits"}}
	var l lost
	look := func(want []string, members ...*recordv1.MemberLease) {
		t.Helper()
		l.look(cells, members)
		if got := l.names(); !slices.Equal(got, want) {
			t.Errorf("lost are %v, want %v", got, want)
		}
	}
	look(nil, lease("dies", false), lease("drains", false), lease("lives", false), lease("waits", false))
	look(nil, lease("dies", false), lease("drains", true), lease("lives", false), lease("waits", false))
	look([]string{"dies"}, lease("lives", false)) // "waits" has gone too, and was not reached
	look([]string{"dies"}, lease("dies", false), lease("lives", false))
	cells = cells[2:]
	look([]string{"dies"}, lease("lives", false))
}
