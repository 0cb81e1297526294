// Package conformance is the suite that every driver passes: what the contract in package driver promises, as cases with
// the ids of the conformance plan. There is no list of exceptions.
//
// A case runs for a driver that declares the case's interface; for one that does not, the suite demands that its
// instances lack the Go interface. The cases of rules that lie above the drivers are elsewhere:
//
//	where                        cases
//	dataplane/dataapi            KV-12 KV-13 KV-17 KV-18 KV-23 KV-24 KV-29 KV-31 to KV-34
//	                             KB-07 KB-08 KB-09, KE-18 (form), KT-02 KT-06 KT-09 KT-16
//	                             KS-03 (token) KS-09 to KS-13 KS-21 to KS-26
//	                             KX-06 KX-11 KX-12 KX-13, KC-05 to KC-13 (through the API)
//	dataplane/pool, /server      LF-03 to LF-07
//	e2e                          LF-12 to LF-16
//	the driver's own tests       LF-08 to LF-11 LF-17
package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// Backend is a store to test a driver against.
type Backend struct {
	Driver driver.Driver
	// Config opens the store. The suite sets Now, and opens it many times.
	Config driver.Config
	// Shared says that all that opens Config sees the same data.
	Shared bool
	// Sweeps says that the driver removes expired items itself: its instances have a Sweep.
	Sweeps bool
	// Stop ends the server so that its data stays, and Start brings it back; both nil for a store without a server.
	Stop, Start func(t *testing.T)
}

// Case is one thing that a driver must do.
type Case struct {
	ID        string // such as KV-03
	Name      string
	Interface string               // the capability that it belongs to
	Needs     func(b Backend) bool // of the store, so that there is something to test; nil: nothing
	Run       func(t *testing.T, e *Env)
}

// Cases lists all cases.
func Cases() []Case {
	return slices.Concat(keyValueCases(), batchCases(), versionCases(), ttlCases(), scanCases(), idempotencyCases(), transactCases(),
		counterCases(), watchCases(), largeCases(), lifeCases(), modelCases())
}

// Run runs all cases against a backend in random order, each in a space and an instance of its own, and prints which
// ran.
func Run(t *testing.T, b Backend) {
	cases := Cases()
	shuffle(cases)
	declared := b.Driver.Interfaces()
	if !slices.IsSorted(declared) {
		t.Errorf("Interfaces() = %q, want them sorted", declared)
	}
	ran := map[string][]string{}
	for _, c := range cases {
		if !slices.Contains(declared, c.Interface) || (c.Needs != nil && !c.Needs(b)) {
			continue
		}
		if t.Run(c.ID+" "+c.Name, func(t *testing.T) { c.Run(t, newEnv(t, b)) }) {
			ran[c.Interface] = append(ran[c.Interface], c.ID)
		}
	}
	t.Run("interfaces are what is declared", func(t *testing.T) { interfaces(t, newEnv(t, b)) })
	t.Run("LF-18 goroutines_back_to_start", func(t *testing.T) { goroutines(t, b) })
	t.Log(table(b.Driver.Type(), ran))
}

func shared(b Backend) bool { return b.Shared }

func sweeps(b Backend) bool { return b.Sweeps }

func idempotent(b Backend) bool { return b.offers("keyvalue.idempotency") }

func expires(b Backend) bool { return b.offers("keyvalue.ttl") }

func versioned(b Backend) bool { return b.offers("keyvalue.version") }

func (b Backend) offers(name string) bool { return slices.Contains(b.Driver.Interfaces(), name) }

func server(b Backend) bool { return b.Stop != nil }

// interfaceNames are the capabilities that the suite has cases for.
var interfaceNames = []string{
	"keyvalue", "keyvalue.version", "keyvalue.ttl", "keyvalue.scan", "keyvalue.list", "keyvalue.idempotency", "keyvalue.counter",
	"keyvalue.transact", "keyvalue.watch", "keyvalue.large",
}

// table says which cases a driver passed.
func table(name string, ran map[string][]string) string {
	var out strings.Builder
	total := 0
	for _, of := range interfaceNames {
		slices.Sort(ran[of])
		fmt.Fprintf(&out, "\n%-8s %-20s %3d  %s", name, of, len(ran[of]), strings.Join(ran[of], " "))
		total += len(ran[of])
	}
	fmt.Fprintf(&out, "\n%-8s %-20s %3d", name, "passed", total)
	return out.String()
}

// interfaces holds the Go interfaces of an instance against what the driver declares.
func interfaces(t *testing.T, e *Env) {
	declared := e.backend.Driver.Interfaces()
	_, keyValue := e.inst.(driver.KeyValue)
	_, scanner := e.inst.(driver.Scanner)
	_, lister := e.inst.(driver.Lister)
	_, counter := e.inst.(driver.Counter)
	_, transactor := e.inst.(driver.Transactor)
	_, watcher := e.inst.(driver.Watcher)
	_, large := e.inst.(driver.LargeValues)
	for name, has := range map[string]bool{
		"keyvalue": keyValue, "keyvalue.scan": scanner, "keyvalue.list": lister, "keyvalue.counter": counter,
		"keyvalue.transact": transactor, "keyvalue.watch": watcher, "keyvalue.large": large,
	} {
		if want := slices.Contains(declared, name); has != want {
			t.Errorf("the instance offers %s: %v; the driver declares it: %v", name, has, want)
		}
	}
}

// Env is what a case works with.
type Env struct {
	driver.KeyValue
	Clock *Clock
	Space driver.Space

	t       *testing.T
	backend Backend
	inst    driver.Instance
}

func newEnv(t *testing.T, b Backend) *Env {
	e := &Env{Clock: &Clock{now: time.Now()}, Space: NewSpace(), t: t, backend: b}
	e.inst = e.open()
	kv, ok := e.inst.(driver.KeyValue)
	if !ok {
		t.Fatalf("%s offers no keyvalue: the suite has no case for that", b.Driver.Type())
	}
	e.KeyValue = kv
	return e
}

// open opens the backend once more, until the case ends.
func (e *Env) open() driver.Instance {
	e.t.Helper()
	cfg := e.backend.Config
	cfg.Now = e.Clock.Now
	inst, err := e.backend.Driver.Open(cfg)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		if err := inst.Close(); err != nil {
			e.t.Errorf("Close: %v", err)
		}
	})
	return inst
}

// NewSpace makes a space that nothing else uses.
func NewSpace() driver.Space { return driver.Space("conf-" + strings.ToLower(rand.Text()[:12]) + ".1") }

// Clock is the clock that a case moves.
type Clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

// Now reads the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Move moves the clock, also backwards.
func (c *Clock) Move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func name(id, key string) driver.Name { return driver.Name{ID: []byte(id), Key: []byte(key)} }

func put(id, key, value string) driver.Write {
	return driver.Write{Op: driver.Put, Name: name(id, key), Value: []byte(value)}
}

func remove(id, key string) driver.Write { return driver.Write{Op: driver.Delete, Name: name(id, key)} }

// onlyIf adds a condition to a write.
func onlyIf(w driver.Write, c driver.Condition, version []byte) driver.Write {
	w.Condition, w.Version = c, version
	return w
}

func until(w driver.Write, at time.Time) driver.Write {
	w.ExpireAt = at
	return w
}

// untilIfAble gives a write an expiry where the store has such, in cases of something else.
func (e *Env) untilIfAble(w driver.Write, at time.Time) driver.Write {
	if expires(e.backend) {
		w.ExpireAt = at
	}
	return w
}

// must writes and fails the case when that fails.
func (e *Env) must(w driver.Write) driver.Written {
	e.t.Helper()
	done, err := e.Write(context.Background(), e.Space, w)
	if err != nil {
		e.t.Fatalf("write %d of %q %q: %v", w.Op, w.ID, w.Key, show(err))
	}
	return done
}

// refused writes and demands a fault that was not applied.
func (e *Env) refused(w driver.Write, code fault.Code, reason fault.Reason) *fault.Fault {
	e.t.Helper()
	done, err := e.Write(context.Background(), e.Space, w)
	return e.isFault(done, err, code, reason, fault.NotApplied)
}

func (e *Env) isFault(done driver.Written, err error, code fault.Code, reason fault.Reason, outcome fault.Outcome) *fault.Fault {
	e.t.Helper()
	f, ok := errors.AsType[*fault.Fault](err)
	if !ok || f.Code != code || f.Reason != reason || f.Outcome != outcome {
		e.t.Fatalf("got %+v and %s, want a fault with code %d, reason %s, outcome %s", done, show(err), code, reason, outcome)
	}
	return f
}

// get reads and fails the case when that fails.
func (e *Env) get(id, key string) *driver.Item {
	e.t.Helper()
	it, err := e.Get(context.Background(), e.Space, name(id, key), false)
	if err != nil {
		e.t.Fatalf("get %q %q: %v", id, key, show(err))
	}
	return it
}

// holds demands a value, absent when want is nil.
func (e *Env) holds(id, key string, want any) *driver.Item {
	e.t.Helper()
	it := e.get(id, key)
	if want == nil {
		if it != nil {
			e.t.Fatalf("%q %q holds %q, want it absent", id, key, it.Value)
		}
		return nil
	}
	if it == nil || string(it.Value) != want {
		e.t.Fatalf("%q %q holds %+v, want %q", id, key, it, want)
	}
	return it
}

// show prints a fault with its cause.
func show(err error) string {
	f, ok := errors.AsType[*fault.Fault](err)
	if !ok {
		return fmt.Sprintf("%v (no fault)", err)
	}
	return fmt.Sprintf("%s (code %d, reason %s, outcome %q, cause %v)", f.Text, f.Code, f.Reason, f.Outcome, f.Unwrap())
}

// goroutines opens, uses and closes the backend, and demands that nothing of it runs on.
func goroutines(t *testing.T, b Backend) {
	before := goleak.IgnoreCurrent()
	for range 3 {
		inst, err := b.Driver.Open(b.Config)
		if err != nil {
			t.Fatal(err)
		}
		if err := inst.Ping(t.Context()); err != nil {
			t.Errorf("Ping: %s", show(err))
		}
		if err := inst.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	goleak.VerifyNone(t, before)
}
