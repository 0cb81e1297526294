package server

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/prism-gateway/prism/controlplane/push"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/certs"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/lifecycle"
	"github.com/prism-gateway/prism/shared/principal"
)

// identity is the replica's own certificates and whom it believes; nil sources mean plaintext.
type identity struct {
	people *certs.Source // of listen
	fleet  *certs.Source // of fleet_listen, and towards the other replicas
}

// newIdentity checks what the configuration says. It does no I/O.
func (s *Server) newIdentity() (i identity, err error) {
	if i.people, err = s.certificates("api", s.c.GetTls()); err == nil {
		i.fleet, err = s.certificates("fleet", s.c.GetFleetTls())
	}
	return i, err
}

func (s *Server) certificates(name string, tls *bootstrapv1.ListenerTls) (*certs.Source, error) {
	switch {
	case tls == nil:
		return nil, nil
	case tls.GetCertificates().GetVaultPki() != nil:
		return nil, errors.New(name + ": vault_pki is for prism-proxy; prism-admin takes files or a workload_api")
	}
	return certs.New(certs.Config{Name: name, Certificates: tls.GetCertificates(), Logger: s.log, Registerer: s.registry})
}

// load waits for the certificates, without which nothing is served.
func (i identity) load(ctx context.Context) error {
	for _, source := range []*certs.Source{i.people, i.fleet} {
		if source == nil {
			continue
		}
		if err := source.Load(ctx); err != nil {
			return err
		}
	}
	return nil
}

// parts renew the certificates.
func (i identity) parts() (out []lifecycle.Part) {
	for _, source := range []*certs.Source{i.people, i.fleet} {
		if source != nil {
			out = append(out, lifecycle.Part{Name: source.Name() + " certificates", Run: source.Run})
		}
	}
	return out
}

func secured(source *certs.Source, tls *bootstrapv1.ListenerTls) grpc.ServerOption {
	if source == nil {
		return grpc.Creds(insecure.NewCredentials())
	}
	return grpc.Creds(source.ServerCredentials(certs.ServerConfig{ClientAuth: tls.GetClientCertificates(), MaxDepth: int(tls.GetMaxDepth())}))
}

// dial is how this replica reaches the others, whose certificates differ from its own in the replica's name only.
func (i identity) dial() []grpc.DialOption {
	if i.fleet == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(i.fleet.ClientCredentials(certs.ClientConfig{Verify: func(p *principal.Principal) error {
		own, err := principal.FromCertificate(i.fleet.Certificate().Leaf)
		if err == nil && !own.Beside(p) {
			err = errors.New("the certificate is of no other replica: their names differ in more than the replica's id")
		}
		return err
	}}))}
}

// named holds those who connect to fleet_listen to the names in their certificates.
func (i identity) named() []grpc.ServerOption {
	if i.fleet == nil {
		return nil
	}
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := i.replica(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, request)
		}),
		grpc.ChainStreamInterceptor(func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := i.replica(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(service, &namedStream{ServerStream: stream})
		}),
	}
}

// replica refuses what replicas ask each other to all others.
func (i identity) replica(ctx context.Context, method string) error {
	if !strings.HasPrefix(method, "/"+controlv1.FleetService_ServiceDesc.ServiceName+"/") || method == controlv1.FleetService_Report_FullMethodName {
		return nil
	}
	theirs, err := certified(ctx)
	if err != nil {
		return err
	}
	own, err := principal.FromCertificate(i.fleet.Certificate().Leaf)
	if err != nil || !own.Beside(theirs) {
		return fault.Wrap(err, fault.PermissionDenied, fault.Operation, "only replicas of prism-admin may ask this: the certificate is of something else").
			WithOutcome(fault.NotApplied)
	}
	return nil
}

// certified is who the certificate of a call's connection names.
func certified(ctx context.Context) (*principal.Principal, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			who, err := principal.FromCertificate(info.State.VerifiedChains[0][0])
			if err != nil {
				return nil, fault.Wrap(err, fault.Unauthenticated, fault.CertInvalid, "the client certificate names nobody").WithOutcome(fault.NotApplied)
			}
			return who, nil
		}
	}
	return nil, fault.New(fault.Unauthenticated, fault.NoCredentials, "a client certificate is required").WithOutcome(fault.NotApplied)
}

// namedStream refuses messages of a proxy that calls itself otherwise than its certificate.
type namedStream struct{ grpc.ServerStream }

// RecvMsg receives a message.
func (s *namedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	node := push.Node(m)
	if report, ok := m.(*controlv1.ReportRequest); ok {
		node = report.GetMember().GetId()
	}
	if node == "" {
		return nil
	}
	who, err := certified(s.Context())
	if err != nil {
		return err
	}
	if who.Node() != node {
		return fault.Newf(fault.PermissionDenied, fault.CertInvalid, "the proxy calls itself %q, and its certificate names %q: they must be the same", node, who.Node()).
			WithOutcome(fault.NotApplied)
	}
	return nil
}
