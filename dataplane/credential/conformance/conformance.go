// Package conformance is the suite that every provider of credentials passes: what the contract in package credential
// promises.
package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/secret"
)

// Special is every character of ASCII that can be printed, and some that are not of it: a password that must come through.
const Special = ` !"#$%&'()*+,-./0123456789:;<=>?@ABC[\]^_` + "`" + `xyz{|}~äß€𝄞`

// canary stands for what may be in no error.
const canary = "canary-71c0ffee"

// Subject is a provider to test. Those whose secrets stand at their paths have Put, the others Login and Path.
type Subject struct {
	Provider credential.Provider
	// Type is what it should say of itself.
	Type string
	// Put makes a secret stand at a path, in place of what stood there.
	Put func(t *testing.T, path, text string)
	// JSONOnly says that Put takes nothing but a JSON object of texts, so that nothing malformed can stand there.
	JSONOnly bool
	// Absent is a path at which nothing stands; empty means absent.
	Absent string

	// Login is a caller who may fetch Path.
	Login func(t *testing.T) *credential.Login
	// Path gives a credential with a lease, to who may have it.
	Path string
	// Opens reports whether a credential opens the store; needed with Path.
	Opens func(t *testing.T, c credential.Credential) bool

	// Unreachable is a provider of the same type whose server is not there; nil where there is no server.
	Unreachable credential.Provider
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	t.Run("says_what_it_is", func(t *testing.T) {
		if got := s.Provider.Type(); got != s.Type {
			t.Errorf("type %q, want %q", got, s.Type)
		}
		if got, want := s.Provider.Dynamic(), s.Login != nil; got != want {
			t.Errorf("dynamic: %v, want %v", got, want)
		}
	})
	t.Run("absent_is_refused", func(t *testing.T) {
		path := s.Absent
		if path == "" {
			path = "absent"
		}
		_, err := s.Provider.Fetch(t.Context(), credential.Request{Path: path, As: s.login(t)})
		if !errors.Is(err, credential.ErrRefused) {
			t.Errorf("nothing stands there: %v", err)
		}
	})
	t.Run("a_path_is_no_other", func(t *testing.T) { s.paths(t) })
	t.Run("ends_with_its_context", func(t *testing.T) {
		as := s.login(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Provider.Fetch(ctx, credential.Request{Path: s.somePath(t), As: as}); err == nil || errors.Is(err, credential.ErrRefused) {
			t.Errorf("without time: %v", err)
		}
	})
	if s.Put != nil {
		t.Run("gives_what_stands_there", func(t *testing.T) { s.stands(t) })
		t.Run("gives_what_stands_there_now", func(t *testing.T) { s.changes(t) })
		t.Run("malformed_is_refused_and_not_quoted", func(t *testing.T) { s.malformed(t) })
	}
	if s.Path != "" {
		t.Run("login_issue_renew_revoke", func(t *testing.T) { s.life(t) })
		t.Run("a_login_ends_what_it_fetched", func(t *testing.T) { s.cascade(t) })
		t.Run("a_false_token_is_refused_and_not_quoted", func(t *testing.T) { s.strangers(t) })
	}
	if s.Unreachable != nil {
		t.Run("not_there_is_no_refusal", func(t *testing.T) { s.unreachable(t) })
	}
	t.Run("many_at_once", func(t *testing.T) { s.together(t) })
}

// login logs the caller in, or does nothing where no login is wanted.
func (s Subject) login(t *testing.T) credential.Lease {
	t.Helper()
	var who *credential.Login
	if s.Login != nil {
		who = s.Login(t)
	}
	l, err := s.Provider.Login(t.Context(), who)
	if err != nil {
		t.Fatal(err)
	}
	if !l.Login {
		t.Error("a login's lease does not say that it is one")
	}
	return l
}

// somePath is a path at which there is something.
func (s Subject) somePath(t *testing.T) string {
	if s.Put == nil {
		return s.Path
	}
	s.Put(t, "some", `{"password":"p"}`)
	return "some"
}

func (s Subject) paths(t *testing.T) {
	as := s.login(t)
	for _, path := range []string{"", ".", "..", "/", "../some", "a/../some", "/some", "some/", "a//some", "some\x00", "some\n", "a\\some", "%2e%2e/some", "some%00", "some#x", strings.Repeat("x", 5000)} {
		_, err := s.Provider.Fetch(t.Context(), credential.Request{Path: path, As: as})
		if !errors.Is(err, credential.ErrRefused) {
			t.Errorf("path %.40q: %v", path, err)
		}
	}
}

func (s Subject) stands(t *testing.T) {
	as := s.login(t)
	for name, tc := range map[string]struct {
		text string
		want credential.Credential
	}{
		"all_of_it": {
			`{"username":"u","password":"p","api_key":"k","token":"t","private_key":"s","certificate":"c","metadata":{"backend_type":"postgres","environment":"production"},"engine":"other"}`,
			credential.Credential{
				Username: "u", Password: secret.New("p"), APIKey: secret.New("k"), Token: secret.New("t"), PrivateKey: secret.New("s"),
				Metadata: map[string]string{"backend_type": "postgres", "environment": "production"},
			},
		},
		"a_password_alone": {`{"password":"p"}`, credential.Credential{Password: secret.New("p")}},
		// CR-21
		"password_with_every_special_character": {object(map[string]any{"username": "u", "password": Special}), credential.Credential{Username: "u", Password: secret.New(Special)}},
	} {
		t.Run(name, func(t *testing.T) {
			s.Put(t, "stands", tc.text)
			issued, err := s.Provider.Fetch(t.Context(), credential.Request{Path: "stands", As: as})
			if err != nil {
				t.Fatal(err)
			}
			got := issued.Credential
			if got.Username != tc.want.Username || got.Password.Reveal() != tc.want.Password.Reveal() || got.APIKey.Reveal() != tc.want.APIKey.Reveal() ||
				got.Token.Reveal() != tc.want.Token.Reveal() || got.PrivateKey.Reveal() != tc.want.PrivateKey.Reveal() || !maps.Equal(got.Metadata, tc.want.Metadata) {
				t.Error("it is not what was put there")
			}
			if !issued.Lease.ID.IsZero() || got.Generation != 0 || !got.IssuedAt.IsZero() {
				t.Error("what stands there has a lease, a generation or a time")
			}
		})
	}
}

func object(fields map[string]any) string {
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func (s Subject) changes(t *testing.T) {
	as := s.login(t)
	for _, password := range []string{"one", "two"} {
		s.Put(t, "changes", object(map[string]any{"password": password}))
		issued, err := s.Provider.Fetch(t.Context(), credential.Request{Path: "changes", As: as})
		if err != nil {
			t.Fatal(err)
		}
		if got := issued.Credential.Password.Reveal(); got != password {
			t.Errorf("got what stood there before")
		}
	}
}

func (s Subject) malformed(t *testing.T) {
	as := s.login(t)
	texts := map[string]string{
		"nothing_that_opens": `{"comment":"` + canary + `"}`,
		"empty":              `{"password":""}`,
	}
	if !s.JSONOnly {
		maps.Copy(texts, map[string]string{
			"no_json":          canary,
			"half_of_it":       `{"password":"` + canary,
			"no_object":        `["` + canary + `"]`,
			"no_text":          `{"password":{"` + canary + `":1}}`,
			"no_metadata":      `{"password":"` + canary + `","metadata":["` + canary + `"]}`,
			"metadata_no_text": `{"password":"` + canary + `","metadata":{"` + canary + `":5}}`,
			"too_long":         object(map[string]any{"password": strings.Repeat(canary, 6000)}),
		})
	}
	for name, text := range texts {
		t.Run(name, func(t *testing.T) {
			s.Put(t, "malformed", text)
			_, err := s.Provider.Fetch(t.Context(), credential.Request{Path: "malformed", As: as})
			if !errors.Is(err, credential.ErrRefused) {
				t.Errorf("taken, or no refusal: %v", err)
			}
			silent(t, err, canary)
		})
	}
}

// silent fails the test when an error holds a secret.
func silent(t *testing.T, err error, secrets ...string) {
	t.Helper()
	for _, text := range secrets {
		if err != nil && text != "" && strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), text) {
			t.Error("the error holds a secret")
		}
	}
}

func (s Subject) life(t *testing.T) {
	as := s.login(t)
	if as.ID.IsZero() || as.Token.IsZero() || as.TTL <= 0 {
		t.Fatalf("the login has no accessor, token or end: %v", as)
	}
	fetch := func() credential.Issued {
		t.Helper()
		issued, err := s.Provider.Fetch(t.Context(), credential.Request{Path: s.Path, As: as})
		if err != nil {
			t.Fatal(err)
		}
		if issued.Lease.Login || issued.Lease.ID.IsZero() || issued.Lease.TTL <= 0 || !issued.Lease.Renewable {
			t.Fatalf("the lease: %v", issued.Lease)
		}
		issued.Lease.As = as.Token
		return issued
	}
	one, two := fetch(), fetch()
	if one.Credential.Username == two.Credential.Username {
		t.Error("two leases have one user")
	}
	if !s.Opens(t, one.Credential) || !s.Opens(t, two.Credential) {
		t.Fatal("the credential does not open the store")
	}
	renewed, err := s.Provider.Renew(t.Context(), one.Lease)
	if err != nil {
		t.Fatal(err)
	}
	if renewed.TTL <= one.Lease.TTL/2 || renewed.ID.Reveal() != one.Lease.ID.Reveal() {
		t.Errorf("renewed: %v", renewed)
	}
	if again, err := s.Provider.Renew(t.Context(), as); err != nil || again.TTL <= 0 || !again.Login {
		t.Errorf("the login renewed: %v, %v", again, err)
	}
	if err := s.Provider.Revoke(t.Context(), one.Lease); err != nil {
		t.Fatal(err)
	}
	s.closed(t, one.Credential)
	if !s.Opens(t, two.Credential) {
		t.Error("another's credential was revoked with it")
	}
	if err := s.Provider.Revoke(t.Context(), one.Lease); err != nil {
		t.Errorf("revoked again: %v", err)
	}
	_, err = s.Provider.Renew(t.Context(), one.Lease)
	if !errors.Is(err, credential.ErrRefused) {
		t.Errorf("renewed after it was revoked: %v", err)
	}
	silent(t, err, one.Lease.ID.Reveal(), as.Token.Reveal(), one.Credential.Password.Reveal())
}

// closed waits until a credential opens the store no more, which is begun and takes the provider a moment.
func (s Subject) closed(t *testing.T, c credential.Credential) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.Opens(t, c) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("what was revoked opens the store")
		}
	}
}

func (s Subject) cascade(t *testing.T) {
	as := s.login(t)
	issued, err := s.Provider.Fetch(t.Context(), credential.Request{Path: s.Path, As: as})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Provider.Revoke(t.Context(), as); err != nil {
		t.Fatal(err)
	}
	s.closed(t, issued.Credential)
	if _, err := s.Provider.Fetch(t.Context(), credential.Request{Path: s.Path, As: as}); !errors.Is(err, credential.ErrRefused) {
		t.Errorf("fetched with a login that was revoked: %v", err)
	}
	// Known by its accessor only, as after a restart, it is revoked by another.
	victim, other := s.login(t), s.login(t)
	issued, err = s.Provider.Fetch(t.Context(), credential.Request{Path: s.Path, As: victim})
	if err != nil {
		t.Fatal(err)
	}
	left := credential.Lease{Login: true, ID: victim.ID, VaultNamespace: victim.VaultNamespace, As: other.Token}
	if err := s.Provider.Revoke(t.Context(), left); err != nil {
		t.Fatal(err)
	}
	s.closed(t, issued.Credential)
	if err := s.Provider.Revoke(t.Context(), left); err != nil {
		t.Errorf("revoked again: %v", err)
	}
}

func (s Subject) strangers(t *testing.T) {
	who := *s.Login(t)
	who.Token = secret.New(canary + "." + canary + "." + canary)
	_, err := s.Provider.Login(t.Context(), &who)
	if !errors.Is(err, credential.ErrRefused) {
		t.Errorf("a false token logs in: %v", err)
	}
	silent(t, err, canary)
	as := s.login(t)
	as.Token = secret.New(canary)
	_, err = s.Provider.Fetch(t.Context(), credential.Request{Path: s.Path, As: as})
	if !errors.Is(err, credential.ErrRefused) {
		t.Errorf("a false login fetches: %v", err)
	}
	silent(t, err, canary)
	_, err = s.Provider.Renew(t.Context(), credential.Lease{ID: secret.New(s.Path + "/" + canary), As: s.login(t).Token, TTL: time.Hour})
	if !errors.Is(err, credential.ErrRefused) {
		t.Errorf("a false lease is renewed: %v", err)
	}
	silent(t, err, canary)
}

func (s Subject) unreachable(t *testing.T) {
	lease := credential.Lease{ID: secret.New(canary), As: secret.New(canary), Token: secret.New(canary), TTL: time.Hour}
	path := s.Path
	if path == "" {
		path = "some"
	}
	_, err := s.Unreachable.Fetch(t.Context(), credential.Request{Path: path, As: lease})
	errs := []error{err}
	if s.Login != nil {
		_, err = s.Unreachable.Login(t.Context(), &credential.Login{Role: "r", Token: secret.New(canary)})
		errs = append(errs, err)
		_, err = s.Unreachable.Renew(t.Context(), lease)
		errs = append(errs, err, s.Unreachable.Revoke(t.Context(), lease))
	}
	for i, err := range errs {
		if err == nil || errors.Is(err, credential.ErrRefused) || errors.Is(err, credential.ErrThrottled) {
			t.Errorf("call %d of a server that is not there: %v", i, err)
		}
		silent(t, err, canary)
	}
}

func (s Subject) together(t *testing.T) {
	as, path := s.login(t), s.somePath(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.Provider.Fetch(t.Context(), credential.Request{Path: path, As: as}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !as.ID.IsZero() {
		if err := s.Provider.Revoke(t.Context(), as); err != nil {
			t.Error(err)
		}
	}
}
