package forward_test

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/prism-gateway/prism/dataplane/forward"
	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/shared/fault"
)

// TestAnOwnerThatFallsSilent has an owner's machine vanish under a call without a deadline.
func TestAnOwnerThatFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := forward.New(forward.Config{DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					if _, err := theirs.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}); err == nil { // empty SETTINGS, and no more
						_, _ = io.Copy(io.Discard, theirs)
					}
				}()
				return ours, nil
			}),
		}})
		defer f.Close()
		var request frame.Frame
		if err := frame.NewCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer{0x0a, 0x00}}, &request); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		_, err := f.Unary(t.Context(), forward.Call{
			Method: "/prism.data.v1.KeyValue/Put", Write: true, Owners: []routing.Peer{{ID: "gone", Address: "gone:1"}},
		}, &request)
		if got := fault.From(err); got == nil || got.Code != fault.Unavailable || got.Outcome != fault.OutcomeUnknown {
			t.Errorf("got %+v", got)
		}
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("told after %v", took)
		}
	})
}

// TestAnOwnerThatDoesNotAnswerIsAskedLast has two owners that take calls and answer none.
func TestAnOwnerThatDoesNotAnswerIsAskedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan string, 10)
		f := forward.New(forward.Config{DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) {
				asked <- address
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					if _, err := theirs.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}); err == nil { // empty SETTINGS, and no more
						_, _ = io.Copy(io.Discard, theirs)
					}
				}()
				return ours, nil
			}),
		}})
		defer f.Close()
		for _, want := range []string{"silent:1", "next:1"} {
			var request frame.Frame
			if err := frame.NewCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer{0x0a, 0x00}}, &request); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			_, err := f.Unary(ctx, forward.Call{
				Method: "/prism.data.v1.KeyValue/Get", Owners: []routing.Peer{{ID: "a", Address: "silent:1"}, {ID: "b", Address: "next:1"}},
			}, &request)
			cancel()
			if got := fault.From(err); got == nil || got.Code != fault.DeadlineExceeded {
				t.Fatalf("got %+v", got)
			}
			if len(asked) != 1 {
				t.Fatalf("%d owners were reached for anew, want %s", len(asked), want)
			}
			if got := <-asked; got != want {
				t.Errorf("asked %s, want %s", got, want)
			}
		}
	})
}
