package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	"github.com/prism-gateway/prism/e2e/history"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// inWaves begins the messages of changes that go in waves.
const inWaves = "in waves "

func (s *soak) anyAdmin(random *rand.Rand) *harness.Admin {
	return s.cluster.Admins[random.IntN(len(s.cluster.Admins))]
}

// record has a client change the namespaces of a history.
func (s *soak) record(ctx context.Context, h *history.History, n int, names []string) {
	random := rand.New(rand.NewPCG(s.seed, 200+uint64(n)))
	for ctx.Err() == nil {
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond) // a pace at which the history can be checked
		if random.IntN(100) == 0 {
			h.RollbackAll(ctx, random, s.anyAdmin(random), n, names)
			continue
		}
		h.Attempt(ctx, random, s.anyAdmin(random), n, names[random.IntN(len(names))])
	}
}

// release changes the namespaces that carry data in waves, some of them so that proxies refuse them, and steers releases
// at random.
func (s *soak) release(ctx context.Context) {
	random := rand.New(rand.NewPCG(s.seed, 300))
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(time.Duration(500+random.IntN(3000)) * time.Millisecond) // releases take a while, several are under way
		admin := s.anyAdmin(random)
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		note := &controlv1.ChangeNote{Author: "soak", Message: fmt.Sprintf("%s%d", inWaves, n)}
		var err error
		switch kind := random.IntN(10); {
		case kind < 6:
			in := &controlv1.ApplyNamespacesRequest{Note: note, Release: &controlv1.ReleaseOptions{}}
			for _, i := range random.Perm(dataSpaces)[:1+random.IntN(3)] {
				r := onRedis(dataName(i))
				r.Limits = &configv1.Limits{Concurrency: uint32(1000 + n)}
				in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: r})
			}
			switch random.IntN(6) {
			case 0:
				in.Release.AtOnce, note.Message = true, fmt.Sprintf("at once %d", n)
			case 1:
				in.Release.ConfirmWithin = durationpb.New(time.Duration(2+random.IntN(15)) * time.Second)
			}
			_, err = admin.Control.ApplyNamespaces(call, in)
			s.count("releases asked for")
		case kind == 6:
			in := &controlv1.ApplyNamespacesRequest{Note: note}
			r := onRedis("poisoned")
			if random.IntN(2) == 0 {
				r = request("poisoned", "sqlite-bad", "sqlite")
			}
			r.Limits = &configv1.Limits{Concurrency: uint32(1000 + n)}
			in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: r})
			_, err = admin.Control.ApplyNamespaces(call, in)
			s.count("namespaces poisoned or healed")
		default:
			var under *adminv1.ListReleasesResponse
			if under, err = admin.Operator.ListReleases(call, &adminv1.ListReleasesRequest{Active: true}); err != nil || len(under.GetReleases()) == 0 {
				break
			}
			r := under.GetReleases()[random.IntN(len(under.GetReleases()))]
			action := adminv1.ReleaseAction(1 + random.IntN(5))
			if _, err = admin.Operator.ControlRelease(call, &adminv1.ControlReleaseRequest{Snapshot: r.GetSnapshot(), Action: action, Note: note}); err == nil {
				s.count(action.String())
			}
		}
		cancel()
		if err != nil {
			s.count("release requests not done")
		}
	}
}
