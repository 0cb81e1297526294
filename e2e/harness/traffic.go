package harness

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// Traffic says what a Load does.
type Traffic struct {
	// Proxies are called in turn by chance.
	Proxies    []datav1.KeyValueClient
	Namespaces []string
	// Retry makes a client try a call again that was answered UNAVAILABLE, as an application does whose writes may be
	// repeated; a call that does not succeed within 15 s is a problem. Without it each failure is one.
	Retry bool
	// Exact makes a read that is not what was written last a problem. It does not fit changes of binding, after which
	// items stay on the former backend.
	Exact bool
}

// Load is clients that write and read namespaces and check every answer. Each value names its namespace and key, so an
// answer from elsewhere shows; each client has keys of its own.
type Load struct {
	traffic Traffic
	calls   atomic.Int64
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu       sync.Mutex // guards problems
	problems []string
}

// StartTraffic starts clients, which go on until Stop.
func StartTraffic(ctx context.Context, clients int, t Traffic) *Load {
	ctx, stop := context.WithCancel(ctx)
	l := &Load{traffic: t, stop: stop}
	for c := range clients {
		l.done.Go(func() { l.client(ctx, c) })
	}
	return l
}

func (l *Load) client(ctx context.Context, c int) {
	random := rand.New(rand.NewPCG(uint64(c), 1))
	last := map[string][]byte{}
	for n := 1; ctx.Err() == nil; n++ {
		namespace := l.traffic.Namespaces[n%len(l.traffic.Namespaces)]
		id, key := fmt.Appendf(nil, "client-%d", c), fmt.Appendf(nil, "key-%d", random.IntN(16))
		name := fmt.Sprintf("%s %s %s", namespace, id, key)
		value := valueOf(namespace, id, key, uint64(n))
		err := l.call(func(ctx context.Context) error {
			proxy := l.traffic.Proxies[random.IntN(len(l.traffic.Proxies))]
			_, err := proxy.Put(ctx, &datav1.PutRequest{Namespace: namespace, Id: id, Key: key, Value: value})
			return err
		})
		if err != nil {
			l.add("put %s: %v", name, err)
			delete(last, name)
			continue
		}
		last[name] = value
		var out *datav1.GetResponse
		err = l.call(func(ctx context.Context) (err error) {
			proxy := l.traffic.Proxies[random.IntN(len(l.traffic.Proxies))]
			out, err = proxy.Get(ctx, &datav1.GetRequest{Namespace: namespace, Id: id, Key: key})
			return err
		})
		got := out.GetItem().GetValue()
		switch {
		case err != nil:
			l.add("get %s: %v", name, err)
		case l.traffic.Exact && !bytes.Equal(got, last[name]):
			l.add("get %s: %q, but %q was acknowledged", name, got, last[name])
		case out.GetItem() != nil && (len(got) != len(value) || !bytes.Equal(got[8:], value[8:])):
			l.add("get %s: the value of another: %q", name, got)
		}
	}
}

// call makes one call, more often when Retry says so.
func (l *Load) call(do func(context.Context) error) error {
	// A call that was begun is finished, also when the load is stopped.
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		err := do(ctx)
		if again := l.traffic.Retry && status.Code(err) == codes.Unavailable && ctx.Err() == nil; !again {
			l.calls.Add(1)
			return err
		}
		time.Sleep(10 * time.Millisecond) // as an application would wait
	}
}

func valueOf(namespace string, id, key []byte, n uint64) []byte {
	v := binary.BigEndian.AppendUint64(nil, n)
	return fmt.Appendf(v, "%s/%s/%s", namespace, id, key)
}

func (l *Load) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.problems = append(l.problems, fmt.Sprintf(format, args...))
}

// Calls is how many calls have ended so far.
func (l *Load) Calls() int64 { return l.calls.Load() }

// Stop ends the clients and returns what went wrong.
func (l *Load) Stop() (calls int64, problems []string) {
	l.stop()
	l.done.Wait()
	return l.calls.Load(), l.problems
}
