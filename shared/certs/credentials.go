package certs

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"
)

// Credentials is Client for grpc, which tells for each connection what is dialled: without ServerName and Verify the
// server's certificate must carry that, be it a name or an address.
func (s *Source) Credentials(cfg ClientConfig) credentials.TransportCredentials {
	return &dialing{TransportCredentials: credentials.NewTLS(s.Client(cfg)), source: s, cfg: cfg}
}

// dialing makes connections. All but their handshake is that of the credentials inside.
type dialing struct {
	credentials.TransportCredentials
	source *Source
	cfg    ClientConfig
}

// ClientHandshake makes one. authority is the host, with or without a port, that is dialled.
func (d *dialing) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg := d.cfg
	if cfg.ServerName == "" && cfg.Verify == nil {
		host, _, err := net.SplitHostPort(authority)
		if err != nil {
			host = authority
		}
		cfg.ServerName = host
	}
	return credentials.NewTLS(d.source.Client(cfg)).ClientHandshake(ctx, authority, raw)
}

// Clone returns the same, which does not change.
func (d *dialing) Clone() credentials.TransportCredentials { return d }
