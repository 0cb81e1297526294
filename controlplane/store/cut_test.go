package store_test

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/prism-gateway/prism/controlplane/release"
	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/controlplane/store"
	"github.com/prism-gateway/prism/controlplane/store/embedded"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/ident"
)

// wire is a connection to etcd that can be broken.
type wire struct {
	listener     net.Listener
	target       string
	loseRequests atomic.Bool
	loseAnswers  atomic.Bool
	lost         chan struct{} // of one: something was lost

	mu      sync.Mutex // guards all below
	conns   map[net.Conn]struct{}
	refuses bool
	copies  sync.WaitGroup
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: listener, target: target, lost: make(chan struct{}, 1), conns: map[net.Conn]struct{}{}}
	w.copies.Go(w.accept)
	t.Cleanup(func() { listener.Close(); w.cut(true); w.copies.Wait() })
	return w
}

func (w *wire) endpoint() string { return w.listener.Addr().String() }

func (w *wire) accept() {
	for {
		in, err := w.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", w.target)
		if err != nil {
			in.Close()
			continue
		}
		w.mu.Lock()
		if w.refuses {
			in.Close()
			out.Close()
			w.mu.Unlock()
			continue
		}
		w.conns[in], w.conns[out] = struct{}{}, struct{}{}
		w.copies.Go(func() { w.copy(out, in, &w.loseRequests) })
		w.copies.Go(func() { w.copy(in, out, &w.loseAnswers) })
		w.mu.Unlock()
	}
}

func (w *wire) copy(to, from net.Conn, lose *atomic.Bool) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if lose.Load() {
			select {
			case w.lost <- struct{}{}:
			default:
			}
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// cut ends all connections; new ones are refused or not.
func (w *wire) cut(refuse bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuses = refuse
	for c := range w.conns {
		c.Close()
	}
	clear(w.conns)
}

// await returns when a key under the prefix has been written after a revision.
func await(t *testing.T, client *clientv3.Client, key string, after int64) {
	t.Helper()
	for resp := range client.Watch(t.Context(), key, clientv3.WithRev(after+1)) {
		if len(resp.Events) > 0 {
			return
		}
	}
	t.Fatalf("%s was not written", key)
}

func TestACommitWhoseAnswerIsLostIsFoundAgain(t *testing.T) {
	w, client := newWire(t, etcd.Endpoint()), dial(t)
	s := open(t, store.Config{Client: dial(t, w.endpoint())})
	commit(t, s, namespace(t, "orders", "1"))
	answer := make(chan error, 1)
	w.loseAnswers.Store(true)
	go func() {
		_, err := s.Commit(t.Context(), release.Order{}, edit(namespace(t, "orders", "2")))
		answer <- err
	}()
	await(t, client, "/"+prefix(t)+"/head", s.Revision())
	w.loseAnswers.Store(false)
	w.cut(false)
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if s.Head().Version() != 2 || contentOf(t, s.Head(), "orders") != "2" {
		t.Errorf("version %d holds %q", s.Head().Version(), contentOf(t, s.Head(), "orders"))
	}
}

func TestACommitThatWasLostIsMadeOnce(t *testing.T) {
	w := newWire(t, etcd.Endpoint())
	s := open(t, store.Config{Client: dial(t, w.endpoint())})
	commit(t, s, namespace(t, "orders", "1"))
	answer := make(chan error, 1)
	w.loseRequests.Store(true)
	go func() {
		_, err := s.Commit(t.Context(), release.Order{}, edit(namespace(t, "orders", "2")))
		answer <- err
	}()
	<-w.lost
	w.loseRequests.Store(false)
	w.cut(false)
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if s.Head().Version() != 2 || contentOf(t, s.Head(), "orders") != "2" {
		t.Errorf("version %d holds %q", s.Head().Version(), contentOf(t, s.Head(), "orders"))
	}
}

func TestACommitThatNobodyAnswersIsUnknown(t *testing.T) {
	w := newWire(t, etcd.Endpoint())
	s := open(t, store.Config{Client: dial(t, w.endpoint())})
	first := commit(t, s, namespace(t, "orders", "1"))
	w.loseAnswers.Store(true)
	_, err := s.Commit(t.Context(), release.Order{}, edit(namespace(t, "orders", "2")))
	if f := fault.From(err); f.Code != fault.Unavailable || f.Reason != fault.StoreDown || f.Outcome != fault.OutcomeUnknown {
		t.Errorf("%v, outcome %s", err, f.Outcome)
	}
	w.cut(true)
	_, err = s.Commit(t.Context(), release.Order{}, edit(namespace(t, "orders", "1")))
	if f := fault.From(err); f.Code != fault.Unavailable || f.Reason != fault.StoreDown || f.Outcome != fault.NotApplied {
		t.Errorf("a change that writes nothing: %v, outcome %s", err, f.Outcome)
	}
	if s.Head() != first.Tree {
		t.Error("the head that was known is gone")
	}
	w.loseAnswers.Store(false)
	w.cut(false)
	// It was made after all, and is found as anybody's commit is.
	wait(t, s.Store, func(tree *snapshot.Tree) bool { return contentOf(t, tree, "orders") == "2" })
	for _, err = s.Commit(t.Context(), release.Order{}, edit(namespace(t, "orders", "3"))); err != nil; _, err = s.Commit(t.Context(), release.Order{}, edit(namespace(t, "orders", "3"))) {
		if !fault.Is(err, fault.StoreDown) {
			t.Fatal(err)
		}
	}
}

// TestCompactionDuringAGap cuts a follower off until etcd has forgotten what it missed.
func TestCompactionDuringAGap(t *testing.T) {
	server, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Volatile: true, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	w := newWire(t, server.Endpoint())
	writer := open(t, store.Config{Client: dial(t, server.Endpoint())})
	follower := open(t, store.Config{Client: dial(t, w.endpoint())})
	commit(t, writer, namespace(t, "orders", "1"), namespace(t, "carts", "1"))
	old := wait(t, follower.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 1 })
	w.cut(true)
	for _, content := range []string{"2", "3", "4"} {
		commit(t, writer, namespace(t, "orders", content))
	}
	now, err := writer.Compact(t.Context(), writer.Revision())
	if err != nil || now == 0 {
		t.Fatal(now, err)
	}
	w.cut(false)
	tree := wait(t, follower.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 4 })
	if tree.Root() != writer.Head().Root() {
		t.Errorf("loaded %s, want %s", tree.Root(), writer.Head().Root())
	}
	p := ident.PartitionOf("carts", tree.Partitions())
	if tree.Collection(p) != old.Collection(p) {
		t.Error("what did not differ was loaded again")
	}
	commit(t, writer, namespace(t, "orders", "5"))
	wait(t, follower.Store, func(tree *snapshot.Tree) bool { return tree.Version() == 5 })
}

// TestAStepIsMadeOnce loses the answer to a step, and then a step.
func TestAStepIsMadeOnce(t *testing.T) {
	w, client := newWire(t, etcd.Endpoint()), dial(t)
	s := open(t, store.Config{Client: dial(t, w.endpoint()), Policies: inWaves()})
	id := send(t, s, release.Order{}, namespace(t, "orders", "1")).Tree.Version()
	type answer struct {
		result release.Result
		err    error
	}
	wave := func(n int) <-chan answer {
		c := make(chan answer, 1)
		go func() {
			result, err := s.Step(t.Context(), func(*release.State) (release.Step, error) {
				return release.Step{Release: id, Do: release.Wave, Wave: n}, nil
			})
			c <- answer{result, err}
		}()
		return c
	}
	for n, lose := range []func(){
		func() { await(t, client, "/"+prefix(t)+"/head", s.Revision()) },
		func() { <-w.lost },
	} {
		flag := []*atomic.Bool{&w.loseAnswers, &w.loseRequests}[n]
		flag.Store(true)
		answers := wave(n + 1)
		lose()
		flag.Store(false)
		w.cut(false)
		if a := <-answers; a.err != nil || a.result.Release.GetWave() != uint32(n+1) {
			t.Fatalf("wave %d: %+v, %v", n+1, a.result, a.err)
		}
	}
	if r := s.Released().Active()[0]; len(r.Events) != 3 {
		t.Errorf("happened: %v", r.Events)
	}
}
