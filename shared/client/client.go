// Package client calls Prism: the data services through any proxy or straight through a namespace's owners, and the
// control plane.
//
// A call is repeated only when that is safe: a read; a write that the answer calls not applied, or that never left this
// process; a write with an idempotency token, which the client gives it where the namespace takes them. Without one a write
// whose outcome is unknown is not repeated, not even an unconditional Put: another caller may have written in between, and
// the late repeat would undo that without anyone noticing. Repeats go to the next endpoint, wait with jitter, honour
// RetryInfo, and are bounded by a budget, so that they cannot make an overload worse.
//
// Errors are those of gRPC; faultgrpc.FromStatus tells reason and outcome.
package client

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/settings"
)

// Config configures a client.
type Config struct {
	// Endpoints are host:port of any proxies, or of replicas of the control plane; at least one.
	Endpoints []string
	// Owners, when set, lets data calls go straight to the owners of their namespace. Endpoints are used when it fails
	// or when no owner answers.
	Owners Owners
	// Credentials secure the connections; nil sends plain text.
	Credentials credentials.TransportCredentials
	// Token, when set, has the token that each call shows who the caller is with. Without TLS it is sent to endpoints on
	// this machine only; a call to another fails with UNAUTHENTICATED.
	Token TokenSource
	// NoTokens leaves writes without idempotency tokens unless the caller gives one. Otherwise each write to a namespace that
	// offers keyvalue.idempotency gets one of its own, so that it is repeated when its outcome is unknown and still done once;
	// for that the client asks each namespace every five minutes what it offers.
	NoTokens bool
	// Attempts is how often one call is tried at most; 0 means 4.
	Attempts int
	// MaxBackoff is the longest wait between two attempts; 0 means 2 s.
	MaxBackoff time.Duration
	// Options are further options for every connection.
	Options []grpc.DialOption
}

// Client calls the data services. It is safe for concurrent use.
type Client struct {
	// KeyValue is the key-value service.
	KeyValue datav1.KeyValueClient
	// Sessions is about the caller's own sessions; Login keeps one.
	Sessions datav1.SessionManagerClient

	router *router
}

// Dial makes a client. It connects when it is first used. The caller closes it.
func Dial(cfg Config) (*Client, error) {
	// A proxy that is gone without a word is noticed by the calls that wait for it. Proxies allow a question every 10 s.
	alive := keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}
	cfg.Options = append([]grpc.DialOption{grpc.WithKeepaliveParams(alive)}, cfg.Options...)
	r, err := newRouter(cfg)
	if err != nil {
		return nil, err
	}
	if !cfg.NoTokens {
		r.tokens = &tokens{}
	}
	return &Client{KeyValue: datav1.NewKeyValueClient(r), Sessions: datav1.NewSessionManagerClient(r), router: r}, nil
}

// Close ends the connections, the calls under way and the keeping of sessions, which end by themselves then.
func (c *Client) Close() error { return c.router.close() }

// Control calls the control plane. It is safe for concurrent use.
type Control struct {
	// Namespaces is the service for teams.
	Namespaces controlv1.ControlPlaneClient
	// Admin is the service for operators.
	Admin adminv1.AdminServiceClient

	router *router
}

// maxControl bounds an answer of the control plane in bytes: what differs between two snapshots may be much.
const maxControl = 32 << 20

// DialControl makes a client of the control plane; Config.Owners is not used. It connects when it is first used. The
// caller closes it.
func DialControl(cfg Config) (*Control, error) {
	cfg.Owners = nil
	cfg.Options = append([]grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxControl))}, cfg.Options...)
	r, err := newRouter(cfg)
	if err != nil {
		return nil, err
	}
	return &Control{Namespaces: controlv1.NewControlPlaneClient(r), Admin: adminv1.NewAdminServiceClient(r), router: r}, nil
}

// Close ends the connections and the calls under way.
func (c *Control) Close() error { return c.router.close() }

func newRouter(cfg Config) (*router, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("client: Config.Endpoints is required")
	}
	for _, e := range cfg.Endpoints {
		if err := settings.CheckEndpoint(e); err != nil {
			return nil, err
		}
	}
	if cfg.Credentials == nil {
		for _, e := range cfg.Endpoints {
			if cfg.Token != nil && settings.CheckLoopback(e, false) != nil {
				return nil, fmt.Errorf("client: endpoint %s: a token is not sent to another machine without TLS", e)
			}
		}
		cfg.Credentials = insecure.NewCredentials()
	}
	cfg.Attempts = cmp.Or(cfg.Attempts, 4)
	cfg.MaxBackoff = cmp.Or(cfg.MaxBackoff, 2*time.Second)
	r := &router{cfg: cfg, conns: map[string]*grpc.ClientConn{}, logins: map[*Login]bool{}, budget: newBudget()}
	if cfg.Owners != nil {
		r.owners = newOwnerCache(cfg.Owners)
	}
	return r, nil
}
