package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	"github.com/prism-gateway/prism/e2e/history"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

const (
	clients   = 3
	historian = 2
	settling  = 2 * time.Minute
)

// work has clients use and change namespaces while the cluster is broken, lets it come to rest, and checks what is left.
func (s *soak) work(duration time.Duration, only string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range dataSpaces {
		s.cluster.Apply(ctx, onRedis(dataName(i)))
	}
	s.cluster.Apply(ctx, onRedis("poisoned"))
	h := history.New(history.Config{Request: onRedis, Release: atOnce()})
	names := []string{"changing-0", "changing-1", "changing-2", "changing-3"}
	before := s.sizes()

	using, stopUsing := context.WithCancel(ctx)
	changing, stopChanging := context.WithCancel(ctx)
	var users, changers sync.WaitGroup
	for n := range clients {
		users.Go(func() { s.client(using, n) })
	}
	users.Go(func() { s.watchCells(using) })
	users.Go(func() { s.watchSizes(using) })
	for n := range historian {
		changers.Go(func() { s.record(changing, h, n, names) })
	}
	changers.Go(func() { s.release(changing) })
	s.breakAll(time.Now().Add(duration), only)
	stopChanging()
	changers.Wait()

	fmt.Println(time.Now().UTC().Format("15:04:05"), "no more faults")
	for _, a := range s.cluster.Admins {
		if !a.Running() {
			a.Start()
		}
	}
	s.cluster.WaitReady(settling)
	s.cluster.WaitSettled(settling)
	harness.Eventually(s, settling, "no release is under way", func() error { return s.endReleases(ctx) })
	harness.Eventually(s, settling, "every proxy serves what it ought to", func() error { return s.rootsAgree(ctx) })
	for i := range dataSpaces { // a change still reaches everybody
		r := onRedis(dataName(i))
		r.Description = "the end"
		_, err := s.cluster.Admin().Control.ApplyNamespaces(ctx, &controlv1.ApplyNamespacesRequest{
			Changes: []*controlv1.NamespaceChange{{Request: r}}, Release: atOnce(), Note: &controlv1.ChangeNote{Author: "soak", Message: "the end"},
		})
		if err != nil {
			s.bad("the last change of %s: %v", dataName(i), err)
		}
	}
	harness.Eventually(s, settling, "every proxy serves what it ought to", func() error { return s.rootsAgree(ctx) })
	time.Sleep(2 * time.Second) // the clients see some of it
	stopUsing()
	users.Wait()
	for _, p := range h.Check(ctx, s, s.cluster.Admins[1], 10) {
		s.bad("%s", p)
	}
	s.compareSizes(before)
}

// endReleases gives what is under way to everybody, and fails while something is.
func (s *soak) endReleases(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	admin := s.cluster.Admin()
	out, err := admin.Operator.ListReleases(ctx, &adminv1.ListReleasesRequest{Active: true})
	if err != nil {
		return err
	}
	for _, r := range out.GetReleases() {
		_, err = admin.Operator.ControlRelease(ctx, &adminv1.ControlReleaseRequest{
			Snapshot: r.GetSnapshot(), Action: adminv1.ReleaseAction_RELEASE_ACTION_PUSH, Note: &controlv1.ChangeNote{Author: "soak", Message: "the end"},
		})
	}
	if len(out.GetReleases()) > 0 {
		return fmt.Errorf("%d are, the first is %v: %w", len(out.GetReleases()), out.GetReleases()[0], err)
	}
	return nil
}

// compareSizes holds what the programs take at rest against what they took at the beginning.
func (s *soak) compareSizes(before map[string]size) {
	after := s.sizes()
	for _, name := range slices.Sorted(maps.Keys(after)) {
		was, is := before[name], after[name]
		fmt.Printf("%-12s %4d MiB and %4d goroutines, at the beginning %4d MiB and %4d\n", name, is.rss>>20, is.goroutines, was.rss>>20, was.goroutines)
		if was.goroutines > 0 && is.goroutines > 2*was.goroutines+200 {
			s.bad("%s has %d goroutines at rest and had %d", name, is.goroutines, was.goroutines)
		}
		if was.rss > 0 && is.rss > 2*was.rss+150<<20 {
			s.bad("%s takes %d MiB at rest and took %d", name, is.rss>>20, was.rss>>20)
		}
	}
}
