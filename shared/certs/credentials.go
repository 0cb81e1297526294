package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"

	"github.com/prism-gateway/prism/shared/telemetry"
)

// longestName bounds what is logged of a name that a stranger's certificate bears.
const longestName = 256

// ClientCredentials is Client for grpc, which tells for each connection what is dialled: without ServerName and Verify the
// server's certificate must carry that, be it a name or an address.
func (s *Source) ClientCredentials(cfg ClientConfig) credentials.TransportCredentials {
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

// ServerCredentials is Server for grpc. Handshakes that fail are counted by their reasons, and those of callers whose
// certificate is refused are logged, one a second at most.
func (s *Source) ServerCredentials(cfg ServerConfig) credentials.TransportCredentials {
	return &listening{TransportCredentials: credentials.NewTLS(s.Server(cfg)), source: s, seldom: &rate.Sometimes{Interval: time.Second}}
}

// listening takes connections. All but their handshake is that of the credentials inside.
type listening struct {
	credentials.TransportCredentials
	source *Source
	seldom *rate.Sometimes
}

// ServerHandshake takes one.
func (l *listening) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := l.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		reason := Reason(err)
		l.source.metrics.refused.WithLabelValues(reason).Inc()
		if reason != reasonOther {
			l.seldom.Do(func() {
				l.source.cfg.Logger.Info("a caller's certificate is refused", telemetry.KeyName, l.source.cfg.Name, telemetry.KeyReason, reason,
					telemetry.KeyAddress, raw.RemoteAddr().String(), telemetry.KeyCaller, claimed(err))
			})
		}
	}
	return conn, info, err
}

// Clone returns the same, which does not change.
func (l *listening) Clone() credentials.TransportCredentials { return l }

// claimed is the name that a refused certificate bears; empty when there was none.
func claimed(err error) string {
	var own refusal
	var unverified *tls.CertificateVerificationError
	var leaf *x509.Certificate
	switch {
	case errors.As(err, &own):
		leaf = own.leaf
	case errors.As(err, &unverified) && len(unverified.UnverifiedCertificates) > 0:
		leaf = unverified.UnverifiedCertificates[0]
	default:
		return ""
	}
	name := leaf.Subject.CommonName
	if len(leaf.URIs) > 0 {
		name = leaf.URIs[0].String()
	}
	return name[:min(len(name), longestName)]
}
