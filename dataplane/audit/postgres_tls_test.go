package audit_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/prism-gateway/prism/dataplane/audit"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

func TestTheServerOfTheTableIsTheOneOfTheAuthority(t *testing.T) {
	s := postgresserver.Start(t, postgresserver.Options{Trust: "prism", TLS: true})
	other := postgresserver.Start(t, postgresserver.Options{Trust: "prism", TLS: true})
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		ca    string
		opens bool
	}{
		"its authority":         {s.CAFile(), true},
		"another's authority":   {other.CAFile(), false},
		"no certificate inside": {empty, false},
		"without TLS":           {"", false},
	} {
		sink, err := audit.NewPostgres(audit.PostgresConfig{Endpoint: s.Addr(), Database: "postgres", CAFile: tc.ca, Proxy: "proxy-1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := sink.Open(t.Context()); (err == nil) != tc.opens {
			t.Errorf("%s: %v", name, err)
		}
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
	}
}
