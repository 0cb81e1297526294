package client

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/servicetoken"
)

// TokenSource has the caller's token, such as a servicetoken.Source. It may be called concurrently and is asked for each
// call, so it remembers the token.
type TokenSource interface {
	Token(context.Context) (servicetoken.Token, error)
}

// bearer sends the caller's token with each call.
type bearer struct {
	router   *router
	loopback bool // the connection does not leave this machine
}

// GetRequestMetadata returns the token, where nobody on the way can read it.
func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if !b.loopback {
		info, _ := credentials.RequestInfoFromContext(ctx)
		if info.AuthInfo == nil || credentials.CheckSecurityLevel(info.AuthInfo, credentials.PrivacyAndIntegrity) != nil {
			return nil, status.Error(codes.Unauthenticated, "the token is not sent over a connection without TLS")
		}
	}
	if shown, ok := ctx.Value(shownKey{b.router}).(secret.Text); ok { // the call is through a Login
		return authorization(shown), nil
	}
	token, err := b.router.cfg.Token.Token(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "the caller has no token: %v", err)
	}
	return authorization(token.Text), nil
}

func authorization(token secret.Text) map[string]string {
	return map[string]string{"authorization": "Bearer " + token.Reveal()}
}

// RequireTransportSecurity returns false: GetRequestMetadata decides by the connection.
func (bearer) RequireTransportSecurity() bool { return false }
