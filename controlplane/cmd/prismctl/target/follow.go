package target

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

const (
	// reopenFor is how long nobody may answer before what is followed is given up: a replica that stops leaves others, and an
	// upgrade takes one after the other.
	reopenFor   = 20 * time.Second
	reopenEvery = 200 * time.Millisecond
)

// Follow gives each what comes on a stream of the control plane until the stream ends well, each is done, or it fails. A stream that breaks
// because its replica went is opened again at another. What each is given after that may be what it was given before.
func Follow[M any](ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[M], error), each func(*M) (done bool, err error)) error {
	var heard time.Time // zero while nothing came ever
	for {
		stream, err := open(ctx)
		for err == nil {
			var m *M
			if m, err = stream.Recv(); err == nil {
				heard = time.Now()
				if done, failed := each(m); done || failed != nil {
					return failed
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if faultgrpc.FromStatus(err).Code != fault.Unavailable || heard.IsZero() || time.Since(heard) > reopenFor {
			return err
		}
		select {
		case <-time.After(reopenEvery):
		case <-ctx.Done():
			return err
		}
	}
}
