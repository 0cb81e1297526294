package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

// TestStorms has 300 proxies lose their replica at once, twice, and refuse a namespace again and again: they are all
// taken in again and sent nothing that they had, and what was refused once is not sent again until it changes.
func TestStorms(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	const proxies = 300
	c := harness.Start(t, harness.Options{Admins: 2, Etcd: 1, Proxies: -1, Lease: 10 * time.Second, Backends: []*configv1.Backend{{Name: "memory-a", Type: "memory"}}})
	s := simulated{harness.Run(t, c.Dir, "simulate", harness.Program(t, "bin/prism-proxy", "make build"), "simulate", "-o", "json",
		"--admin-endpoint", c.Admins[0].FleetAddress, "--admin-endpoint", c.Admins[1].FleetAddress, "--proxies", fmt.Sprint(proxies), "--nack", "^refused-")}
	s.await(t, "the proxies hold all partitions", func(r simulatedReport) bool { return r.Owning == proxies && r.Cells == 3*1024 })
	c.WaitSettled(time.Minute)
	arrives := func(prefix string, n int, ttl time.Duration) {
		t.Helper()
		newest := applyAll(ctx, t, c, simulatedNamespaces(prefix, n, ttl))
		s.await(t, "a change arrives", func(r simulatedReport) bool { return r.Snapshot >= newest })
	}
	arrives("app", 300, time.Hour)

	before := s.await(t, "all are connected", func(r simulatedReport) bool { return r.Connected == proxies })
	for _, lost := range [][]*harness.Admin{c.Admins[1:], c.Admins} {
		for _, a := range lost {
			a.Kill()
		}
		for _, a := range lost {
			a.Start()
		}
		c.WaitReady(time.Minute)
		after := s.await(t, "all are connected again", func(r simulatedReport) bool {
			return r.Connected == proxies && r.Reconnects > before.Reconnects
		})
		if again := after.Resumed - before.Resumed; again != 0 {
			t.Errorf("%d resources were sent again to proxies that had them", again)
		}
		before = after
	}
	arrives("app", 300, 2*time.Hour)

	const refusals = 20
	for n := range refusals {
		applyAll(ctx, t, c, simulatedNamespaces("refused", 1, time.Duration(1+n)*time.Hour))
	}
	last := s.await(t, "the last one is refused", func(r simulatedReport) bool { return r.Nacks > before.Nacks })
	for n := range 10 {
		arrives("app", 20, time.Duration(3+n)*time.Hour)
	}
	if last, err := s.last(); err != nil || last.Nacks-before.Nacks > 3*refusals {
		t.Errorf("%d times three proxies refused %d versions, %v", last.Nacks-before.Nacks, refusals, err)
	}
	quiet := s.await(t, "a report", func(r simulatedReport) bool { return r.Nacks >= last.Nacks })
	for n := range 10 {
		arrives("app", 20, time.Duration(30+n)*time.Hour)
	}
	if last, err := s.last(); err != nil || last.Nacks != quiet.Nacks {
		t.Errorf("%d refusals more though what is refused did not change, %v", last.Nacks-quiet.Nacks, err)
	}
}
