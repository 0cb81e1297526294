package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

const (
	callTimeout = 3 * time.Second
	patience    = 30 * time.Second
)

// item is what one client knows of an item that only it writes.
type item struct {
	last []byte
	// late are values of attempts that may still arrive: a connection that was held delivers when it is let go.
	late map[string]bool
}

// client writes and reads at a pace and checks every answer.
func (s *soak) client(ctx context.Context, n int) {
	random := rand.New(rand.NewPCG(s.seed, 100+uint64(n)))
	items := map[string]*item{}
	for turn := 0; ctx.Err() == nil; turn++ {
		time.Sleep(time.Duration(5+random.IntN(20)) * time.Millisecond) // a pace that leaves the machine to others
		namespace := dataName(random.IntN(dataSpaces))
		id, key := fmt.Appendf(nil, "client-%d", n), fmt.Appendf(nil, "key-%d", random.IntN(8))
		name := fmt.Sprintf("%s/%s/%s", namespace, id, key)
		it := items[name]
		if it == nil {
			it = &item{late: map[string]bool{}}
			items[name] = it
		}
		if random.IntN(2) == 0 {
			value := fmt.Appendf(nil, "%s#%d", name, turn)
			err := s.call(random, func(ctx context.Context, kv datav1.KeyValueClient) error {
				_, err := kv.Put(ctx, &datav1.PutRequest{Namespace: namespace, Id: id, Key: key, Value: value})
				if err != nil && faultgrpc.FromStatus(err).Outcome != fault.NotApplied {
					it.late[string(value)] = true
				}
				return err
			})
			if err != nil {
				s.bad("put %s: %v", name, err)
				continue
			}
			it.last = value
			continue
		}
		var out *datav1.GetResponse
		err := s.call(random, func(ctx context.Context, kv datav1.KeyValueClient) (err error) {
			out, err = kv.Get(ctx, &datav1.GetRequest{Namespace: namespace, Id: id, Key: key})
			return err
		})
		switch got := out.GetItem().GetValue(); {
		case err != nil:
			s.bad("get %s: %v", name, err)
		case got != nil && !bytes.HasPrefix(got, []byte(name+"#")):
			s.bad("get %s: the value of another: %q", name, got)
		case !bytes.Equal(got, it.last) && !it.late[string(got)]:
			s.bad("get %s: %q, but %q was acknowledged", name, got, it.last)
		}
	}
}

// call tries one call through any proxies until it succeeds, fails in a way that no repeat excuses, or has taken too long.
func (s *soak) call(random *rand.Rand, do func(context.Context, datav1.KeyValueClient) error) error {
	began := time.Now()
	for attempt := 1; ; attempt++ {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		all := s.takers()
		err := do(ctx, all[random.IntN(len(all))].KeyValue)
		cancel()
		if err == nil {
			s.count("data calls")
			return nil
		}
		s.count("data calls repeated after " + status.Code(err).String())
		if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded || time.Since(began) > patience {
			return fmt.Errorf("attempt %d, after %v: %w", attempt, time.Since(began).Round(time.Millisecond), err)
		}
		time.Sleep(20 * time.Millisecond) // as an application would wait
	}
}

func dataName(n int) string { return fmt.Sprintf("data-%02d", n) }
