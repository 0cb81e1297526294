package nats_test

import (
	"fmt"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

// pair is a key of a kind, with its public part and its seed.
func pair(t *testing.T, prefix nkeys.PrefixByte) (key nkeys.KeyPair, public, seed string) {
	t.Helper()
	key, err := nkeys.CreatePair(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if public, err = key.PublicKey(); err != nil {
		t.Fatal(err)
	}
	text, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return key, public, string(text)
}

// TestUserJWT has a server that knows an operator, whose accounts' users show a JWT and sign for it.
func TestUserJWT(t *testing.T) {
	operator, operatorName, _ := pair(t, nkeys.PrefixByteOperator)
	account, accountName, _ := pair(t, nkeys.PrefixByteAccount)
	_, userName, seed := pair(t, nkeys.PrefixByteUser)
	_, _, otherSeed := pair(t, nkeys.PrefixByteUser)
	encoded := func(claims jwt.Claims, by nkeys.KeyPair) string {
		text, err := claims.Encode(by)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	_, systemName, _ := pair(t, nkeys.PrefixByteAccount)
	system := encoded(jwt.NewAccountClaims(systemName), operator)
	own := jwt.NewOperatorClaims(operatorName)
	own.SystemAccount = systemName
	claims := jwt.NewAccountClaims(accountName)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	server := natsserver.Start(t, natsserver.Options{Config: fmt.Sprintf(
		"operator: %s\nresolver: MEMORY\nresolver_preload: {%s: %s, %s: %s}", encoded(own, operator), accountName, encoded(claims, operator), systemName, system,
	)})
	user := secret.New(encoded(jwt.NewUserClaims(userName), account))
	for name, c := range map[string]struct {
		key  secret.Text
		want fault.Reason
	}{
		"its own seed":    {secret.New(seed), ""},
		"another's seed":  {secret.New(otherSeed), fault.CredentialsUnavailable},
		"no seed":         {secret.Text{}, fault.CredentialsUnavailable},
		"what is no seed": {secret.New("SUnone"), fault.BackendDown},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, driver.Config{Endpoints: []string{server.Addr()}, Token: user, PrivateKey: c.key})
			_, err := s.Write(t.Context(), "s", put("a", "k", "v"))
			if (err == nil) != (c.want == "") || err != nil && !fault.Is(err, c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}
