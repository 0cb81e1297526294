package subscribe

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/shared/telemetry"
)

const (
	lasting      = 5 * time.Second // of a stream on which all was well
	maxRetryInfo = 5 * time.Minute // of what a replica asks for
)

// connect keeps one stream to one of the endpoints until ctx ends.
func (c *Client) connect(ctx context.Context, events chan<- event) {
	endpoints := c.shuffled()
	for attempt, next := 0, 0; ; next++ {
		endpoint, begun := endpoints[next%len(endpoints)], time.Now()
		answered, err := c.follow(ctx, endpoint, events)
		if ctx.Err() != nil {
			return
		}
		switch {
		case answered:
			attempt = afterAnswers(attempt, begun)
		case status.Code(err) == codes.Unimplemented: // most often PRISM_ADMIN_ENDPOINT as prismctl wants it
			c.log.Error("no proxy can subscribe here: want the fleet_listen of a prism-admin, not where people call", telemetry.KeyAddress, endpoint, telemetry.KeyError, err)
		default:
			c.log.Warn("the control plane does not answer", telemetry.KeyAddress, endpoint, telemetry.KeyError, err)
		}
		c.metrics.reconnects.Inc()
		if !pause(ctx, retryAfter(err, attempt)) {
			return
		}
		attempt++
	}
}

// afterAnswers is the attempt to go on with after a stream that brought answers. Only one that lasted begins anew: a
// replica that answers and fails must not be called without end.
func afterAnswers(attempt int, begun time.Time) int {
	if time.Since(begun) >= lasting {
		return 0
	}
	return attempt
}

// shuffled returns the endpoints in an order of this proxy's own, so that a fleet spreads over the replicas.
func (c *Client) shuffled() []string {
	out := append([]string(nil), c.cfg.Endpoints...)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// follow opens a stream and tells the loop what comes, until the stream ends. It reports whether anything came.
func (c *Client) follow(run context.Context, endpoint string, events chan<- event) (answered bool, err error) {
	ctx, cancel := context.WithCancel(run)
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel()
	conn, err := c.dial(endpoint)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	s := &session{endpoint: endpoint, out: make(chan *request), cancel: cancel}
	tell := func(e event) { // also when the loop has given the stream up: it waits for the end
		select {
		case events <- e:
		case <-run.Done():
		}
	}
	tell(event{session: s})
	sender.Go(func() {
		for {
			select {
			case r := <-s.out:
				if stream.Send(r) != nil {
					return // Recv says why
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		r, err := stream.Recv()
		if err != nil {
			header, _ := stream.Header() // of a refusal too; err says the rest
			tell(event{session: s, err: err, installation: installation(metadata.Join(header, stream.Trailer()))})
			return answered, err
		}
		e := event{session: s, response: r}
		if header, err := stream.Header(); err == nil && !answered {
			e.installation = installation(header)
		}
		answered = true
		tell(e)
	}
}

// dial prepares a connection to one endpoint. The caller closes it.
func (c *Client) dial(endpoint string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: 5 * time.Second}),
		grpc.WithDisableServiceConfig(),
	}
	return grpc.NewClient(endpoint, append(options, c.cfg.DialOptions...)...)
}

// backoff is a random time up to firstBackoff, doubled with each attempt, and at most maxBackoff.
func backoff(attempt int) time.Duration {
	limit := maxBackoff
	if attempt < 8 {
		limit = min(limit, firstBackoff<<attempt)
	}
	return rand.N(limit)
}

// retryAfter is how long to wait after err: the back-off, or longer when the replica said so.
func retryAfter(err error, attempt int) time.Duration {
	wait := backoff(attempt)
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			wait = max(wait, min(info.GetRetryDelay().AsDuration(), maxRetryInfo))
		}
	}
	return wait
}

// pause waits, and reports whether ctx still runs.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
