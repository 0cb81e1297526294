package authn

import (
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/shared/fault"
)

// The metadata in which callers bring bearer tokens.
const (
	Authorization = "authorization"
	PrismToken    = "x-prism-token"
)

// Bearer finds the bearer token of a call: authorization with the scheme Bearer, or x-prism-token. A call that brings several
// is refused, since nobody can know which it means. The error is a fault.
func Bearer(md metadata.MD) (token string, found bool, err error) {
	standard, ours := md[Authorization], md[PrismToken]
	switch {
	case len(standard)+len(ours) == 0:
		return "", false, nil
	case len(standard)+len(ours) > 1:
		return "", false, malformed("the call brings more than one token: want one, in authorization or in x-prism-token")
	case len(ours) == 1:
		token = ours[0]
	default:
		scheme, rest, _ := strings.Cut(standard[0], " ")
		if !strings.EqualFold(scheme, "bearer") {
			return "", false, malformed("authorization has another scheme than Bearer")
		}
		token = rest
	}
	if token == "" || strings.ContainsAny(token, " \t\r\n,") {
		return "", false, malformed("the bearer token is malformed")
	}
	return token, true, nil
}

func malformed(text string) error {
	return fault.New(fault.Unauthenticated, fault.TokenInvalid, text).WithOutcome(fault.NotApplied)
}
