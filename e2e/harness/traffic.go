package harness

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// Traffic is clients that write and read namespaces through all proxies and check every answer: each value names its
// namespace and key, so an answer from elsewhere shows.
type Traffic struct {
	calls   atomic.Int64
	stop    context.CancelFunc
	done    sync.WaitGroup
	mu      sync.Mutex // guards problems
	problem []string
}

// StartTraffic starts clients, each of which goes round the proxies and namespaces until Stop. A call that fails, and an
// answer that is wrong, is kept.
func StartTraffic(ctx context.Context, clients int, proxies []datav1.KeyValueClient, namespaces []string) *Traffic {
	ctx, stop := context.WithCancel(ctx)
	tr := &Traffic{stop: stop}
	for c := range clients {
		tr.done.Go(func() { tr.client(ctx, c, proxies, namespaces) })
	}
	return tr
}

func (tr *Traffic) client(ctx context.Context, c int, proxies []datav1.KeyValueClient, namespaces []string) {
	random := rand.New(rand.NewPCG(uint64(c), 1))
	for n := 0; ctx.Err() == nil; n++ {
		proxy, namespace := proxies[random.IntN(len(proxies))], namespaces[n%len(namespaces)]
		id, key := fmt.Appendf(nil, "client-%d", c), fmt.Appendf(nil, "key-%d", random.IntN(16))
		value := valueOf(namespace, id, key, uint64(n))
		_, err := proxy.Put(context.WithoutCancel(ctx), &datav1.PutRequest{Namespace: namespace, Id: id, Key: key, Value: value}, grpc.WaitForReady(false))
		tr.note("put", namespace, err)
		out, err := proxies[random.IntN(len(proxies))].Get(context.WithoutCancel(ctx), &datav1.GetRequest{Namespace: namespace, Id: id, Key: key})
		tr.note("get", namespace, err)
		// After a change of binding the item may be an older one, or absent: it stayed on the former backend. It is never
		// another's.
		if err == nil && out.GetItem() != nil {
			if got, want := out.GetItem().GetValue(), valueOf(namespace, id, key, 0); len(got) != len(want) || !bytes.Equal(got[8:], want[8:]) {
				tr.add(fmt.Sprintf("get %s %s %s: the value of another: %q", namespace, id, key, got))
			}
		}
	}
}

func valueOf(namespace string, id, key []byte, n uint64) []byte {
	v := binary.BigEndian.AppendUint64(nil, n)
	return fmt.Appendf(v, "%s/%s/%s", namespace, id, key)
}

func (tr *Traffic) note(what, namespace string, err error) {
	tr.calls.Add(1)
	if err != nil {
		tr.add(fmt.Sprintf("%s %s: %v", what, namespace, err))
	}
}

func (tr *Traffic) add(problem string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.problem = append(tr.problem, problem)
}

// Calls is how many calls have ended so far.
func (tr *Traffic) Calls() int64 { return tr.calls.Load() }

// Stop ends the clients and returns what went wrong.
func (tr *Traffic) Stop() (calls int64, problems []string) {
	tr.stop()
	tr.done.Wait()
	return tr.calls.Load(), tr.problem
}
