package lifecycle

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
)

// GRPC is a part that serves gRPC on a listener, which it owns. Draining lets calls under way finish.
func GRPC(name string, server *grpc.Server, l net.Listener) Part {
	return Part{
		Name: name,
		Run: func(ctx context.Context) error {
			stop := context.AfterFunc(ctx, server.Stop)
			defer stop()
			if err := server.Serve(l); !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
				return err
			}
			return nil
		},
		Drain: func(ctx context.Context) error {
			done := make(chan struct{})
			go func() {
				server.GracefulStop()
				close(done)
			}()
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				server.Stop() // ends GracefulStop as well
				<-done
				return errors.New("calls under way were cut off")
			}
		},
	}
}

// HTTP is a part that serves HTTP on a listener, which it owns. Draining lets requests under way finish.
func HTTP(name string, handler http.Handler, l net.Listener) Part {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	serve := func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
	return Part{
		Name: name,
		Run: func(ctx context.Context) error {
			closed := make(chan struct{})
			stop := context.AfterFunc(ctx, func() {
				_ = server.Close() // the listener's error comes out of Serve
				close(closed)
			})
			err := serve()
			if !stop() {
				<-closed
			}
			return err
		},
		Drain: server.Shutdown,
	}
}
