package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

const (
	benchNamespace = "bench"
	items          = 1000
	repeats        = 5
)

// target is one of the ways to the store that are compared.
type target struct {
	name string
	get  call
	pid  int // of the program; 0: none
	// allocated tells what the program allocated since its start: objects, bytes; nil: not known.
	allocated func(r *run) (objects, bytes float64)
}

// usage is what a program used since its start.
type usage struct {
	cpu            time.Duration
	objects, bytes float64
}

func (t *target) usage(r *run) (u usage) {
	if t.pid != 0 {
		var err error
		if u.cpu, err = harness.CPUTime(t.pid); err != nil {
			r.Fatalf("%v", err)
		}
	}
	if t.allocated != nil {
		u.objects, u.bytes = t.allocated(r)
	}
	return u
}

// since puts what was used since before into a sample, per call.
func (u usage) since(before usage, s sample) sample {
	n := float64(max(1, s.calls))
	s.cpu = time.Duration(float64(u.cpu-before.cpu) / n)
	s.objects, s.bytes = (u.objects-before.objects)/n, (u.bytes-before.bytes)/n
	return s
}

func key(i int) []byte { return fmt.Appendf(nil, "item-%04d", i%items) }

// grpcGet reads through a gRPC server over a few connections, as several application processes would.
func grpcGet(conns []*grpc.ClientConn) call {
	var clients []datav1.KeyValueClient
	for _, c := range conns {
		clients = append(clients, datav1.NewKeyValueClient(c))
	}
	return func(ctx context.Context, i int) error {
		out, err := clients[i%len(clients)].Get(ctx, &datav1.GetRequest{Namespace: benchNamespace, Id: key(i)})
		if err == nil && len(out.GetItem().GetValue()) != 256 {
			err = fmt.Errorf("get: %d bytes", len(out.GetItem().GetValue()))
		}
		return err
	}
}

func dialSeveral(r *run, address string) (conns []*grpc.ClientConn) {
	for range 4 {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			r.Fatalf("%v", err)
		}
		r.Cleanup(func() { _ = conn.Close() })
		conns = append(conns, conn)
	}
	return conns
}

// fill writes the items through a gRPC server.
func fill(ctx context.Context, r *run, conn *grpc.ClientConn) {
	client := datav1.NewKeyValueClient(conn)
	for i := range items {
		if _, err := client.Put(ctx, &datav1.PutRequest{Namespace: benchNamespace, Id: key(i), Value: make([]byte, 256)}, grpc.WaitForReady(true)); err != nil {
			r.Fatalf("put: %v", err)
		}
	}
}

// compare measures Prism, the pass-through and the store's own client.
func compare(r *run, of store) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	endpoint := of.start(r)
	cluster := harness.Start(r, harness.Options{Proxies: 1, Owners: 1, Backends: []*configv1.Backend{of.backend(endpoint)}})
	cluster.Apply(ctx, &configv1.NamespaceRequest{
		Namespace: benchNamespace, Team: "bench", Pattern: "keyvalue", Needs: &configv1.Needs{Durability: of.durability},
	})
	address, stats := harness.FreeAddress(r), harness.FreeAddress(r)
	pass := harness.Run(r, cluster.Dir, "passthrough", harness.Build(r, filepath.Join(cluster.Dir, "passthrough"), "./e2e/passthrough"),
		"--listen", address, "--stats", stats, "--store", of.kind, "--address", of.passAddress(r, endpoint))
	proxy := cluster.Proxies[0]
	prismConns, passConns := dialSeveral(r, proxy.Address), dialSeveral(r, address)
	fill(ctx, r, prismConns[0])
	fill(ctx, r, passConns[0])
	targets := []*target{
		{name: "prism", get: grpcGet(prismConns), pid: proxy.Pid(), allocated: func(r *run) (float64, float64) { return prometheusAllocations(r, proxy.HTTPAddress) }},
		{name: "pass", get: grpcGet(passConns), pid: pass.Pid(), allocated: func(r *run) (float64, float64) { return jsonAllocations(r, stats) }},
	}
	if of.direct != nil {
		targets = append(targets, &target{name: "direct", get: of.direct(ctx, r, endpoint)})
	}
	const prism, bare, direct = 0, 1, 2
	saturated := 0.0
	for _, clients := range []int{1, 16, 64} {
		p := rounds(repeats, targets, func(t *target) sample { return closed(ctx, r, t, t.get, clients, r.scaled(3*time.Second)) })
		at := fmt.Sprintf("Get, %d clients: ", clients)
		rates := fmt.Sprintf("prism %.0f/s, pass-through %.0f/s", p.of(prism, perSecond), p.of(bare, perSecond))
		r.table.add("A6", at+"throughput over pass-through", fmt.Sprintf("%.2f", p.ratio(prism, bare, perSecond)), "≥ 0.85", rates)
		r.table.add(of.cpuGoal, at+"CPU of the proxy over the pass-through's", fmt.Sprintf("%+.1f µs, %.2f", p.more(prism, bare, cpu), p.ratio(prism, bare, cpu)), of.cpuWant,
			fmt.Sprintf("pass-through %.1f µs", p.of(bare, cpu)))
		r.table.add("A3", at+"CPU of the proxy per call", us(p.of(prism, cpu)), of.absolute, "")
		r.table.add("A7", at+"allocated per call, more than pass-through", fmt.Sprintf("%+.1f objects, %+.0f B", p.more(prism, bare, objects), p.more(prism, bare, bytesOf)), "≤ 12, ≤ 1,536 B",
			fmt.Sprintf("pass-through %.1f objects, %.0f B", p.of(bare, objects), p.of(bare, bytesOf)))
		if clients == 1 {
			r.table.add("A4", at+"p50 added to pass-through", us(p.more(prism, bare, p50)), "≤ 30 µs", "pass-through "+us(p.of(bare, p50)))
			if of.direct != nil {
				r.table.add("B1", at+"p50 added to the store's own client", us(p.more(prism, direct, p50)), "≤ 150 µs", "client "+us(p.of(direct, p50)))
			}
		}
		saturated = max(saturated, p.of(prism, perSecond))
	}
	p := rounds(repeats, targets, func(t *target) sample { return open(ctx, r, t, t.get, 1000, r.scaled(3*time.Second)) })
	r.table.add("A5", "Get, 1,000/s open loop: p99 added to pass-through", us(p.more(prism, bare, p99)), "≤ 100 µs or 15 %", fmt.Sprintf("pass-through p99 %s, p50 %s", us(p.of(bare, p99)), us(p.of(bare, p50))))
	if of.direct != nil {
		r.table.add("B2", "the same: p99 added to the store's own client", us(p.more(prism, direct, p99)), "≤ 1,000 µs", "client "+us(p.of(direct, p99)))
		r.table.add("B3", "the same: p90 added to the store's own client", us(p.more(prism, direct, p90)), "≤ 500 µs", "client "+us(p.of(direct, p90)))
	}
	half := int(saturated / 2)
	p = rounds(repeats, targets[:1], func(t *target) sample { return open(ctx, r, t, t.get, half, r.scaled(3*time.Second)) })
	r.table.add("B5", fmt.Sprintf("Get, %d/s open loop, half of saturation: p99.9", half), us(p.of(prism, top)), "≤ 5,000 µs", "p99 "+us(p.of(prism, p99)))
	if of.batch != nil {
		batches(ctx, r, of, endpoint, prismConns)
	}
	rss, err := harness.RSS(proxy.Pid())
	if err != nil {
		r.Fatalf("%v", err)
	}
	r.table.add("C6", "memory of the proxy after it", fmt.Sprintf("%d MiB", rss>>20), "≤ 150 MB", "")
}

// batches compares a BatchGet of 100 with as many reads of the store's own client at once.
func batches(ctx context.Context, r *run, of store, endpoint string, conns []*grpc.ClientConn) {
	direct := of.batch(ctx, r, endpoint)
	client := datav1.NewKeyValueClient(conns[0])
	through := func(ctx context.Context, i int) error {
		in := &datav1.BatchGetRequest{Namespace: benchNamespace}
		for n := range 100 {
			in.Names = append(in.Names, &datav1.Name{Id: key(i*100 + n)})
		}
		out, err := client.BatchGet(ctx, in)
		if err == nil && (len(out.GetResults()) != 100 || len(out.GetResults()[99].GetItem().GetValue()) != 256) {
			err = fmt.Errorf("batch get: %d results", len(out.GetResults()))
		}
		return err
	}
	p := rounds(repeats, []*target{{name: "prism", get: through}, {name: "direct", get: direct}}, func(t *target) sample {
		return closed(ctx, r, t, t.get, 1, r.scaled(2*time.Second))
	})
	r.table.add("B4", "BatchGet of 100 over 100 pipelined reads of the store's own client, p50", fmt.Sprintf("%.2f", p.ratio(0, 1, p50)), "≤ 1.3", fmt.Sprintf("prism %s, client %s", us(p.of(0, p50)), us(p.of(1, p50))))
}

// prometheusAllocations reads what a Prism program allocated.
func prometheusAllocations(r *run, address string) (objects, bytes float64) {
	for _, line := range strings.Split(body(r, "http://"+address+"/metrics"), "\n") {
		name, value, _ := strings.Cut(line, " ")
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch name {
		case "go_memstats_mallocs_total":
			objects = f
		case "go_memstats_alloc_bytes_total":
			bytes = f
		}
	}
	return objects, bytes
}

func jsonAllocations(r *run, address string) (objects, bytes float64) {
	var m map[string]float64
	if err := json.Unmarshal([]byte(body(r, "http://"+address+"/allocations")), &m); err != nil {
		r.Fatalf("%v", err)
	}
	return m["objects"], m["bytes"]
}

func body(r *run, url string) string {
	response, err := http.Get(url)
	if err != nil {
		r.Fatalf("%v", err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		r.Fatalf("%v", err)
	}
	return string(data)
}
