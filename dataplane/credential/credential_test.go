package credential_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/secret"
)

func TestNothingSecretIsPrinted(t *testing.T) {
	canary := func(name string) secret.Text { return secret.New("canary-" + name) }
	c := credential.Credential{
		Username: "canary-user", Password: canary("password"), APIKey: canary("key"), Token: canary("token"), PrivateKey: canary("private"),
		Metadata: map[string]string{"note": "canary-metadata"},
	}
	l := credential.Lease{Login: true, ID: canary("id"), Token: canary("token"), As: canary("as"), TTL: time.Hour}
	who := credential.Login{Role: "r", Token: canary("jwt")}
	request := credential.Request{Path: "p", As: l}
	var log bytes.Buffer
	for _, value := range []any{c, &c, l, &l, who, &who, request, credential.Issued{Credential: c, Lease: l}, []credential.Credential{c}, map[string]credential.Lease{"l": l}} {
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "v", value)
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", value)
		fmt.Fprintf(&log, "%v %+v %#v %s %q", value, value, value, value, value)
		func() {
			defer func() { fmt.Fprintln(&log, recover()) }()
			panic(fmt.Sprint(value))
		}()
	}
	if text := log.String(); strings.Contains(text, "canary") {
		t.Errorf("printed: %s", text[max(0, strings.Index(text, "canary")-200):][:220])
	}
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		ok   bool
	}{
		"a user and a password":        {`{"username":"u","password":"p"}`, true},
		"a key alone":                  {`{"api_key":"k"}`, true},
		"what a cloud adds is ignored": {`{"username":"u","password":"p","engine":"postgres","port":5432}`, true},
		"nothing":                      {``, false},
		"an empty object":              {`{}`, false},
		"null":                         {`null`, false},
		"a text":                       {`"p"`, false},
		"two objects":                  {`{"password":"p"}{"password":"q"}`, false},
		"a number as password":         {`{"password":5}`, false},
		"an object as metadata":        {`{"password":"p","metadata":{"a":{"b":"c"}}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := credential.Parse([]byte(tc.text))
			if tc.ok && err != nil || !tc.ok && !errors.Is(err, credential.ErrRefused) {
				t.Errorf("%v, want it taken: %v", err, tc.ok)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"username":"u","password":"p","metadata":{"environment":"production"}}`))
	f.Add([]byte(`{"certificate":"c","private_key":"k"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := credential.Parse(data)
		if err != nil {
			if !errors.Is(err, credential.ErrRefused) || len(data) > 40 && strings.Contains(err.Error(), string(data)) {
				t.Errorf("told %v", err)
			}
			return
		}
		if c.Username == "" && c.Password.IsZero() && c.APIKey.IsZero() && c.Token.IsZero() && c.PrivateKey.IsZero() || !json.Valid(data) {
			t.Error("nothing was taken for a credential")
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, cfg := range map[string]credential.Config{
		"no logger":       {},
		"no provider":     {Logger: log, Providers: map[string]credential.Provider{"d": nil}},
		"negative rate":   {Logger: log, Policy: credential.Policy{IssuesPerSecond: -1}},
		"negative margin": {Logger: log, Policy: credential.Policy{Margin: -1}},
	} {
		if _, err := credential.New(cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
