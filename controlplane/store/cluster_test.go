package store_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/shared/fault"
)

// asEtcd in the environment makes the test binary be etcd instead of the tests.
const asEtcd = "PRISM_TEST_BE_ETCD"

// node is one etcd process of a cluster.
type node struct {
	args     []string
	endpoint string
	cmd      *exec.Cmd
}

func (n *node) start(t *testing.T) {
	t.Helper()
	n.cmd = exec.Command(os.Args[0], n.args...)
	n.cmd.Env = append(os.Environ(), asEtcd+"=1")
	n.cmd.SysProcAttr = dieWithParent()
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill is kill -9.
func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

// freeURLs returns URLs on loopback whose ports were free a moment ago.
func freeURLs(t *testing.T, n int) []string {
	t.Helper()
	var free []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		free = append(free, "http://"+l.Addr().String())
	}
	return free
}

// cluster starts three etcd processes.
func cluster(t *testing.T) []*node {
	t.Helper()
	free := freeURLs(t, 6)
	peers := fmt.Sprintf("n0=%s,n1=%s,n2=%s", free[0], free[1], free[2])
	var nodes []*node
	for i := range 3 {
		n := &node{endpoint: strings.TrimPrefix(free[3+i], "http://"), args: []string{
			"--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--log-level", "fatal",
			"--listen-peer-urls", free[i], "--initial-advertise-peer-urls", free[i], "--initial-cluster", peers,
			"--listen-client-urls", free[3+i], "--advertise-client-urls", free[3+i],
			"--heartbeat-interval", "50", "--election-timeout", "500",
		}}
		n.start(t)
		t.Cleanup(n.kill)
		nodes = append(nodes, n)
	}
	return nodes
}

func leader(t *testing.T, client *clientv3.Client, nodes []*node) *node {
	t.Helper()
	for _, n := range nodes {
		if status, err := client.Status(t.Context(), n.endpoint); err == nil && status.Leader == status.Header.MemberId {
			return n
		}
	}
	t.Fatal("the cluster has no leader")
	return nil
}

// TestTheLeaderOfEtcdIsKilledDuringCommits kills it twice, while two replicas commit, and holds the history against
// what the committers were told.
func TestTheLeaderOfEtcdIsKilledDuringCommits(t *testing.T) {
	nodes := cluster(t)
	endpoints := []string{nodes[0].endpoint, nodes[1].endpoint, nodes[2].endpoint}
	var replicas []*replica
	for range 2 {
		replicas = append(replicas, open(t, store.Config{Client: dial(t, endpoints...), Partitions: 64}))
	}
	const workers = 4
	var acknowledged, refused, unknown sync.Map
	var count atomic.Int64
	progress := make(chan struct{}, 1)
	done := make(chan struct{})
	var group sync.WaitGroup
	for n, r := range replicas {
		for w := range workers {
			group.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-done:
						return
					default:
					}
					message := fmt.Sprintf("%d/%d/%d", n, w, i)
					_, err := r.Commit(t.Context(), release.Order{}, func(*snapshot.Tree, uint64) ([]snapshot.Set, error) {
						set := namespace(t, "counter", message)
						set.Message = message
						return []snapshot.Set{set}, nil
					})
					switch f := fault.From(err); {
					case err == nil:
						acknowledged.Store(message, true)
						count.Add(1)
						select {
						case progress <- struct{}{}:
						default:
						}
						continue
					case f.Outcome == fault.NotApplied:
						refused.Store(message, true)
					case f.Outcome == fault.OutcomeUnknown:
						unknown.Store(message, true)
					default:
						t.Errorf("%s: %v, outcome %q", message, err, f.Outcome)
					}
					// Sync waits for an etcd that answers; that it does not is told by the next commit.
					_ = r.Sync(t.Context())
				}
			})
		}
	}
	until := func(more int64) {
		for goal := count.Load() + more; count.Load() < goal; {
			<-progress
		}
	}
	client := dial(t, endpoints...)
	for range 2 {
		until(100)
		victim := leader(t, client, nodes)
		victim.kill()
		until(100)
		victim.start(t)
	}
	until(100)
	close(done)
	group.Wait()

	cold := open(t, store.Config{Client: dial(t, endpoints...)})
	if err := replicas[0].Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cold.Head().Root() != replicas[0].Head().Root() {
		t.Errorf("loaded %s, want %s", cold.Head().Root(), replicas[0].Head().Root())
	}
	told := map[string]int{}
	for before := uint64(0); before != 1; {
		page, err := cold.Snapshots(t.Context(), before, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range page {
			if before != 0 && rec.Version != before-1 {
				t.Fatalf("snapshot %d comes before %d", rec.Version, before)
			}
			before = rec.Version
			for _, c := range rec.Changes {
				told[c.Message]++
			}
		}
	}
	number := func(of *sync.Map, check func(message string, times int)) (n int) {
		of.Range(func(message, _ any) bool {
			n++
			check(message.(string), told[message.(string)])
			return true
		})
		return n
	}
	kept := number(&acknowledged, func(message string, times int) {
		if times != 1 {
			t.Errorf("%s was acknowledged and is recorded %d times", message, times)
		}
	})
	not := number(&refused, func(message string, times int) {
		if times != 0 {
			t.Errorf("%s was told not to be applied and is recorded", message)
		}
	})
	maybe := number(&unknown, func(message string, times int) {
		if times > 1 {
			t.Errorf("%s is recorded %d times", message, times)
		}
	})
	t.Logf("%d acknowledged, %d not applied, %d unknown", kept, not, maybe)
}
