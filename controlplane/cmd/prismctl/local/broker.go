package local

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/prism-gateway/prism/shared/lifecycle"
)

// broker is a NATS server with JetStream inside prismctl.
func broker(at, storeDir string) (lifecycle.Part, error) {
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return lifecycle.Part{}, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return lifecycle.Part{}, err
	}
	nats, err := server.NewServer(&server.Options{
		ServerName: "prism-local", Host: host, Port: number, JetStream: true, StoreDir: storeDir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return lifecycle.Part{}, err
	}
	return lifecycle.Part{
		Name: "nats",
		Run: func(ctx context.Context) error {
			nats.Start()
			<-ctx.Done()
			nats.Shutdown()
			nats.WaitForShutdown()
			return nil
		},
		Started: func(context.Context) error {
			if !nats.ReadyForConnections(10 * time.Second) {
				return errors.New("the NATS server did not come up within 10s")
			}
			return nil
		},
	}, nil
}
