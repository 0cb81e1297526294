package subscribe_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/subscribe"
	"github.com/prism-gateway/prism/shared/ident"
)

var pushOrder = []string{subscribe.AssignmentType, subscribe.SharedType, subscribe.NamespaceType}

// files reads a directory.
func files(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if out[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// directory writes one.
func directory(t testing.TB, content map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range content {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// savedFiles returns the files of a proxy that had a tree in effect, and then a second one, at both times.
func savedFiles(t *testing.T, a, b map[string]members) (before, after map[string][]byte) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHonest(a, 0, pushOrder)
		cp := newPeer(t, "installation-1")
		cp.serve = h.serve
		dir := t.TempDir()
		p := start(t, map[string]*peer{"a": cp}, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
		time.Sleep(3 * time.Second) // the disk rests between two saves
		before = files(t, dir)
		h.set(b)
		time.Sleep(3 * time.Second) // the disk rests between two saves
		after = files(t, dir)
		if p.counter("persist_errors_total") != 0 || p.client.Status().PersistError != "" {
			t.Fatal("the state is not on disk")
		}
	})
	return before, after
}

// loaded starts a proxy without a control plane on the files. It fails unless each partition is as in one of the trees,
// the same one for all, or missing where that may be; it returns how many there are and what could not be used.
func loaded(t *testing.T, content map[string][]byte, trees ...map[string]members) (count int, problems float64, log string) {
	t.Helper()
	dir := directory(t, content)
	synctest.Test(t, func(t *testing.T) {
		p := start(t, nil, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
		synctest.Wait()
		problems, log = p.counter("persist_errors_total"), p.log.String()
		if len(p.states) == 0 {
			return
		}
		s := p.last()
		count = len(s.Partitions)
		for q, partition := range s.Partitions {
			values := valuesOf(t, q.String(), partition.Members)
			if !slices.ContainsFunc(trees, func(tree map[string]members) bool { return fmt.Sprint(values) == fmt.Sprint(tree[q.String()]) }) {
				t.Fatalf("%v has %v", q, values)
			}
			valuesOf(t, "shared", s.Shared[partition.SharedRoot])
		}
	})
	return count, problems, log
}

func TestColdStart(t *testing.T) {
	a, b := trees()
	before, after := savedFiles(t, a, b)
	if n, problems, _ := loaded(t, before, a); n != partitions || problems != 0 {
		t.Fatalf("%d partitions, %v problems", n, problems)
	}
	n, problems, _ := loaded(t, after, b)
	if n != partitions || problems != 0 {
		t.Fatalf("%d partitions, %v problems", n, problems)
	}
	for name := range after {
		if strings.HasSuffix(name, ".tmp") {
			t.Errorf("%s is left", name)
		}
	}
	if len(after) != 2+1+2+partitions-1 { // the state twice, lock, the shared set twice, the partitions that are not empty
		t.Errorf("%d files", len(after))
	}
}

// TestKilledAtAnyWrite goes through what a kill can leave: each new file cut anywhere under its temporary name, then
// whole, before the state names it; then the state in the same way.
func TestKilledAtAnyWrite(t *testing.T) {
	a, b := trees()
	before, after := savedFiles(t, a, b)
	crashed := map[string][]byte{}
	for name, data := range before {
		crashed[name] = data
	}
	check := func(what string, want map[string]members) {
		t.Helper()
		if n, problems, log := loaded(t, crashed, want); n != partitions || problems != 0 {
			t.Fatalf("%s: %d partitions, %v problems: %s", what, n, problems, log)
		}
	}
	write := func(name string, data []byte, want map[string]members) {
		for cut := 0; cut <= len(data); cut += 1 + len(data)/40 {
			crashed[name+".tmp"] = data[:cut]
			check(fmt.Sprintf("%s cut at %d", name, cut), a)
		}
		delete(crashed, name+".tmp")
		crashed[name] = data
		check(name+" whole", want)
	}
	for name, data := range after {
		if _, there := before[name]; !there {
			write(name, data, a)
		}
	}
	write("state", after["state"], b)
	for cut := 0; cut <= len(after["state.copy"]); cut += 1 + len(after["state.copy"])/40 {
		crashed["state.copy.tmp"] = after["state.copy"][:cut]
		check(fmt.Sprintf("state.copy cut at %d", cut), b)
	}
	delete(crashed, "state.copy.tmp")
	crashed["state.copy"] = after["state.copy"]
	check("state.copy whole", b)
	for name := range before {
		if _, kept := after[name]; !kept {
			delete(crashed, name)
			check(name+" swept", b)
		}
	}
}

func TestDamage(t *testing.T) {
	tree, _ := trees()
	good, _ := savedFiles(t, tree, tree)
	with := func(name string, data []byte) map[string][]byte {
		out := map[string][]byte{}
		for n, d := range good {
			out[n] = d
		}
		out[name] = data
		return out
	}
	flipped := func(data []byte, at int) []byte {
		out := bytes.Clone(data)
		out[at] ^= 1 << (at / 4 % 8)
		return out
	}
	t.Run("the state file", func(t *testing.T) {
		for at := range good["state"] {
			damaged := map[string][]byte{"cut": good["state"][:at]}
			if at%4 == 0 {
				damaged["flipped"] = flipped(good["state"], at)
			}
			for what, data := range damaged {
				n, problems, log := loaded(t, with("state", data), tree)
				if n != partitions || problems != 1 || !strings.Contains(log, "/state:") {
					t.Fatalf("%s at %d: %d partitions, %v problems: %s", what, at, n, problems, log)
				}
			}
		}
	})
	t.Run("the state file and its copy", func(t *testing.T) {
		for at := 0; at < len(good["state"]); at += 7 {
			files := with("state", good["state"][:at])
			files["state.copy"] = flipped(good["state"], at)
			n, problems, log := loaded(t, files)
			if n != 0 || problems != 2 || !strings.Contains(log, "/state:") || !strings.Contains(log, "/state.copy:") {
				t.Fatalf("at %d: %d partitions, %v problems: %s", at, n, problems, log)
			}
		}
	})
	t.Run("the copy alone does no harm", func(t *testing.T) {
		if n, problems, log := loaded(t, with("state.copy", nil), tree); n != partitions || problems != 0 {
			t.Fatalf("%d partitions, %v problems: %s", n, problems, log)
		}
	})
	t.Run("collections in each other's place", func(t *testing.T) {
		one := manifestOf("p/0001", tree["p/0001"]).Root().String() + ".members"
		other := manifestOf("shared", backends).Root().String() + ".members"
		for name := range good {
			if strings.HasSuffix(name, ".members") && name != one && name != other {
				other = name
				break
			}
		}
		files := with(one, good[other])
		files[other] = good[one]
		n, problems, log := loaded(t, files, tree)
		if n != partitions-2 || problems != 2 || !strings.Contains(log, one) || !strings.Contains(log, other) {
			t.Fatalf("%d partitions, %v problems: %s", n, problems, log)
		}
	})
	t.Run("one collection's file leaves the others", func(t *testing.T) {
		name := manifestOf("p/0001", tree["p/0001"]).Root().String() + ".members"
		for at := range good[name] {
			for what, data := range map[string][]byte{"cut": good[name][:at], "flipped": flipped(good[name], at)} {
				n, problems, log := loaded(t, with(name, data), tree)
				if n != partitions-1 || problems != 1 || !strings.Contains(log, name) {
					t.Fatalf("%s at %d: %d partitions, %v problems: %s", what, at, n, problems, log)
				}
			}
		}
	})
	t.Run("a state file that is gone", func(t *testing.T) {
		files := with("x", nil)
		delete(files, "state")
		if n, problems, log := loaded(t, files, tree); n != partitions || problems != 1 || !strings.Contains(log, "/state:") {
			t.Fatalf("%d partitions, %v problems: %s", n, problems, log)
		}
	})
	set := manifestOf("shared", backends).Root().String() + ".members"
	t.Run("a shared set's file leaves its copy", func(t *testing.T) {
		for at := range good[set] {
			n, problems, log := loaded(t, with(set, flipped(good[set], at)), tree)
			if n != partitions || problems != 1 || !strings.Contains(log, set+": ") || !strings.Contains(log, "its copy is used") {
				t.Fatalf("at %d: %d partitions, %v problems: %s", at, n, problems, log)
			}
		}
	})
	t.Run("a shared set that is gone is named once for all its partitions", func(t *testing.T) {
		files := with("x", nil)
		delete(files, set)
		delete(files, set+".copy")
		if n, problems, log := loaded(t, files); n != 0 || problems != 3 || !strings.Contains(log, "p/0000 p/0001") {
			t.Fatalf("%d partitions, %v problems: %s", n, problems, log)
		}
	})
	t.Run("a state of a build that kept shared sets once", func(t *testing.T) {
		files := with("x", nil)
		delete(files, set+".copy")
		if n, problems, log := loaded(t, files, tree); n != partitions || problems != 0 {
			t.Fatalf("%d partitions, %v problems: %s", n, problems, log)
		}
	})
	t.Run("what is damaged is fetched anew and replaced", func(t *testing.T) {
		name := manifestOf("p/0001", tree["p/0001"]).Root().String() + ".members"
		damaged := with(name, good[name][1:])
		damaged[set] = nil
		damaged["state.tmp"] = []byte("x")
		stray := strings.Repeat("ab", 32) + ".members"
		damaged[stray] = []byte("x")
		damaged["somebody's.tmp"] = []byte("x")
		dir := directory(t, damaged)
		synctest.Test(t, func(t *testing.T) {
			h := newHonest(tree, 0, pushOrder)
			cp := newPeer(t, "installation-1")
			cp.serve = h.serve
			p := start(t, map[string]*peer{"a": cp}, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
			if first := p.state(); len(first.Partitions) != partitions-1 {
				t.Fatalf("starts with %d partitions", len(first.Partitions))
			}
			time.Sleep(time.Minute)
			has(t, p.last(), 1, tree["p/0001"], backends)
		})
		now := files(t, dir)
		if !bytes.Equal(now[name], good[name]) || !bytes.Equal(now[set], good[set]) || !bytes.Equal(now[set+".copy"], good[set]) {
			t.Error("the damaged files were not replaced")
		}
		if now[stray] != nil || now["state.tmp"] != nil || now["somebody's.tmp"] == nil {
			t.Error("left-over files were not swept, or those of others were")
		}
	})
}

func TestStateOfAnotherProxyIsNotUsed(t *testing.T) {
	tree, _ := trees()
	good, _ := savedFiles(t, tree, tree)
	dir := directory(t, good)
	synctest.Test(t, func(t *testing.T) {
		p := start(t, nil, func(c *subscribe.Config, _ *proxy) { c.StateDir, c.Node.ID = dir, "proxy-7" })
		p.idle("the state is another proxy's")
		if p.counter("persist_errors_total") != 1 || !strings.Contains(p.log.String(), "proxy-1") {
			t.Fatalf("nothing is said: %s", p.log)
		}
	})
}

func TestTwoProxiesDoNotShareADirectory(t *testing.T) {
	dir := t.TempDir()
	one := start(t, nil, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
	for {
		if _, err := os.Stat(filepath.Join(dir, "lock")); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	two := start(t, nil, func(c *subscribe.Config, _ *proxy) { c.StateDir = dir })
	select {
	case err := <-two.returned:
		if err == nil || !strings.Contains(err.Error(), "another proxy") {
			t.Fatalf("the second says %v", err)
		}
	case err := <-one.returned: // the second was faster at the lock
		if err == nil || !strings.Contains(err.Error(), "another proxy") {
			t.Fatalf("the first says %v", err)
		}
	}
}

func TestStalenessIsKeptOverARestart(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		p, _, _ := running(t, members{one: "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir = dir })
		time.Sleep(time.Hour)
		p.stop()
		time.Sleep(24 * time.Hour)
		p = start(t, nil, func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir = dir })
		has(t, p.state(), 1, members{one: "1"}, backends)
		if got := p.client.Staleness(); got != 24*time.Hour {
			t.Fatalf("stale for %v", got)
		}
		if got := time.Since(p.client.Status().Heard); got < 24*time.Hour {
			t.Errorf("heard of %v ago", got)
		}
		synctest.Wait()
		if got := p.client.Status(); !got.Assigned || got.Revision != 7 || got.Installation != "installation-1" {
			t.Fatalf("the status is %+v", got)
		}
	})
}

func TestPartitionThatIsNotAssignedIsLetGoAfterARestart(t *testing.T) {
	one := nsIn(1, 0)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		p, _, s := running(t, members{one: "1"}, func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir = dir })
		s.ack(s.send(subscribe.AssignmentType, assignment(2)))
		p.stop()
		p = start(t, nil, func(cfg *subscribe.Config, _ *proxy) { cfg.StateDir = dir })
		has(t, p.state(), 1, members{one: "1"}, backends)
		begun := time.Now()
		if st := p.state(); len(st.Partitions) != 0 || !slices.Equal(st.Changed, []ident.Partition{1}) || time.Since(begun) != 30*time.Second {
			t.Fatalf("after %v the state is %v", time.Since(begun), st)
		}
	})
}
