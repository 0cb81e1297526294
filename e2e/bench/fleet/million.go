package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

const (
	millionProxies = 100
	millionBound   = 15 * time.Minute // of loading
	millionStep    = 100_000          // after how many namespaces it is told how things stand
)

// million loads namespaces until there are as many as wanted, the time is over or something breaks, and tells what they cost.
func million(r *run, wanted int) {
	c := r.start(harness.Options{})
	a := c.Admins[0]
	s := r.fleet(c, millionProxies)
	b := &changing{run: r, cluster: c, admin: a, sim: s}
	fmt.Printf("\n| namespaces | loading took | one change of 10,000 | CPU | RSS | live heap | etcd on disk | RSS of %d simulated proxies |\n|---|---|---|---|---|---|---|---|\n", millionProxies)
	began, loaded := time.Now(), 0
	for loaded < wanted && time.Since(began) < millionBound {
		var batch []*configv1.NamespaceRequest
		for i := range perChange {
			batch = append(batch, small(loaded+i))
		}
		before := r.cpu(a.Process)
		snapshot, _, took, err := change(a, batch...)
		if err != nil {
			fmt.Printf("\nafter %d namespaces: %v\n", loaded, err)
			break
		}
		b.newest, loaded = snapshot, loaded+perChange
		if loaded%millionStep == 0 || loaded == perChange {
			fmt.Printf("| %d | %s | %s | %s | %s | %s | %s | %s |\n", loaded, short(time.Since(began)), short(took), short(r.cpu(a.Process)-before),
				mib(r.rss(a.Process)), mib(int64(r.live(c, a))), mib(onDisk(filepath.Join(c.Dir, "admin-0.etcd"))), mib(r.rss(s.Process)))
		}
	}
	waited := time.Now()
	s.await(patience, "the newest snapshot in effect", func(rep report) error {
		if rep.Snapshot < b.newest {
			return fmt.Errorf("%d of %d", rep.Snapshot, b.newest)
		}
		return nil
	})
	fmt.Printf("\nthe newest snapshot is in effect %s after it was recorded\n", short(time.Since(waited)))
	r.size.namespaces = loaded
	s.Pause()
	fmt.Printf("started again, ready after %s", short(r.restart(a)))
	time.Sleep(2 * time.Second)
	highest, err := peak(a.Pid())
	if err != nil {
		r.Fatalf("%v", err)
	}
	fmt.Printf(", RSS %s, at most %s\n", mib(r.rss(a.Process)), mib(highest))
	s.Resume()
	s.current(c)
	var calls []call
	for i := range 100 {
		changed := small(i * 7919 % loaded)
		changed.Needs.ReadRps = 11
		snapshot, began, took := r.change(a, changed)
		calls = append(calls, call{snapshot, began, began.Add(took)})
	}
	b.settle()
	r.table.add(row{id: "L1", what: fmt.Sprintf("M=%d, N=%d", loaded, millionProxies), d: b.effects(calls)})
}

// small is a namespace of which little is asked.
func small(i int) *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{
		Namespace: name(i), Team: team, Pattern: "keyvalue",
		Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_NONE, ReadRps: 10, Ttl: durationpb.New(time.Hour)},
	}
}

// onDisk is how many bytes the files below a directory have.
func onDisk(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error { // what cannot be read does not count
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	return bytes
}
