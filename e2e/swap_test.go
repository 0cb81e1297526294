package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

// TestSwapsUnderLoad changes the namespace that is called, at full load and without retries, until every proxy has
// swapped its table often enough: no call fails, and none is answered from elsewhere. PRISM_SWAPS says how often; the
// promise is made for 10,000, which make soak-swaps does.
func TestSwapsUnderLoad(t *testing.T) {
	swaps := 500
	if text := os.Getenv("PRISM_SWAPS"); text != "" {
		var err error
		if swaps, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(swaps)*100*time.Millisecond+2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Backends: backends(t)})
	c.Apply(ctx, onRedis("swapped"), onRedis("beside"))
	least := func() (n uint64) {
		for i, p := range c.Proxies {
			d, err := p.Dump()
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 || d.TableSwaps < n {
				n = d.TableSwaps
			}
		}
		return n
	}
	traffic := harness.StartTraffic(ctx, 8, harness.Traffic{Proxies: clients(c), Namespaces: []string{"swapped", "beside"}, Exact: true})
	waitCalls(ctx, t, traffic, 500)
	changes, until := 0, least()+uint64(swaps)
	for least() < until {
		for range 25 {
			r := onRedis("swapped")
			r.Limits = &configv1.Limits{Concurrency: uint32(1000 + changes%1000)}
			changes++
			if _, err := c.Admin().Control.ApplyNamespaces(ctx, applying(r)); err != nil {
				t.Fatal(err)
			}
		}
	}
	calls, problems := traffic.Stop()
	none(t, fmt.Sprintf("%d changes, %d swaps on each proxy", changes, swaps), calls, problems)
}

// TestRebindDrains takes a namespace from one Redis to another and back under load: no call fails, and once the owners
// serve the change and have let go of what they had before, nothing reaches the former Redis any more.
func TestRebindDrains(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	stores := []*redisserver.Server{redisserver.Start(t, redisserver.Options{}), redisserver.Start(t, redisserver.Options{})}
	var all []*configv1.Backend
	for i, s := range stores {
		all = append(all, &configv1.Backend{Name: fmt.Sprintf("redis-%d", i), Type: "redis", Endpoints: []string{s.Addr()}})
	}
	c := harness.Start(t, harness.Options{Backends: all})
	c.Apply(ctx, keyvalue("moving", "redis-0", "redis"))
	traffic := harness.StartTraffic(ctx, 6, harness.Traffic{Proxies: clients(c), Namespaces: []string{"moving"}})
	for n := 1; n <= 6; n++ {
		waitCalls(ctx, t, traffic, traffic.Calls()+300)
		former := stores[(n+1)%2]
		if commands(t, former.Addr()) == 0 {
			t.Fatal("no call reached the store before: the test proves nothing")
		}
		c.Apply(ctx, keyvalue("moving", fmt.Sprintf("redis-%d", n%2), "redis"))
		harness.Eventually(t, 20*time.Second, "the owners let go", func() error {
			for _, p := range c.Proxies {
				if left := metric(c.Get(p.HTTPAddress, "/metrics"), "prism_proxy_tables_undrained"); left != "0" {
					return fmt.Errorf("%s has %q tables that calls may still use", p.ID, left)
				}
			}
			return nil
		})
		before := commands(t, former.Addr())
		waitCalls(ctx, t, traffic, traffic.Calls()+500)
		if after := commands(t, former.Addr()); after != before {
			t.Errorf("%d commands reached the former store after the drain", after-before)
		}
	}
	calls, problems := traffic.Stop()
	none(t, "six rebinds", calls, problems)
}

// commands is how many commands a Redis has run for data.
func commands(t *testing.T, address string) (n int) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "INFO commandstats\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	head, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	size, err := strconv.Atoi(strings.Trim(head, "$\r\n"))
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(in, body); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		name, figures, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		first, _, _ := strings.Cut(figures, ",")
		switch name {
		case "info", "ping", "hello", "client|setname", "client|setinfo", "select", "command":
			continue // of connections, not of calls
		}
		if ok {
			calls, err := strconv.Atoi(first)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			n += calls
		}
	}
	return n
}

// TestLargePartition puts more than 4 MiB of configuration, what one gRPC message may hold by default, into one
// partition: a proxy that has nothing is given all of it, and a change in it arrives as a change.
func TestLargePartition(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	const partitions, count = 32, 8000 // about as many as one partition may have
	c := harness.Start(t, harness.Options{Partitions: partitions, Relays: true, Backends: backends(t)})
	at := ident.PartitionOf("large-0", partitions)
	var all []*configv1.NamespaceRequest
	for i := 0; len(all) < count; i++ {
		n := fmt.Sprintf("large-%d", i)
		if n += strings.Repeat("x", 60-len(n)); i == 0 {
			n = "large-0"
		}
		if ident.PartitionOf(n, partitions) == at {
			r := onRedis(n)
			r.Team = strings.Repeat("x", 60)
			r.Patterns[0].Needs.Interfaces = []string{"keyvalue.list", "keyvalue.scan", "keyvalue.ttl", "keyvalue.version"}
			all = append(all, r)
		}
	}
	for first := 0; first < len(all); first += 5000 {
		if _, err := c.Admin().Control.ApplyNamespaces(ctx, applying(all[first:min(first+5000, len(all))]...)); err != nil {
			t.Fatal(err)
		}
	}
	live(ctx, t, c.Admin(), "large-0", 0)
	p := c.Proxies[0]
	p.Kill()
	if err := os.RemoveAll(p.StateDir); err != nil {
		t.Fatal(err)
	}
	link := c.Links.Fleet[0][0]
	before := link.Carried()
	p.Start()
	harness.Eventually(t, time.Minute, "the proxy is ready", p.Ready)
	harness.Eventually(t, time.Minute, "all of it is there", func() error {
		d, err := p.Dump()
		if err != nil {
			return err
		}
		for _, part := range d.Partitions {
			if part.Partition == at.String() && len(part.Namespaces) == len(all) {
				return nil
			}
		}
		return fmt.Errorf("of %d namespaces not all are", len(all))
	})
	if got := link.Carried() - before; got < 4<<20 {
		t.Errorf("it was given %d bytes: the test proves nothing", got)
	}
	before = link.Carried()
	change(ctx, t, c.Admin(), "large-0")
	if got := link.Carried() - before; got > 1<<20 {
		t.Errorf("%d bytes were sent for one change", got)
	}
}
