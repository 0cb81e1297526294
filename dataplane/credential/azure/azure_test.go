package azure_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/azure"
	"github.com/prism-gateway/prism/dataplane/credential/conformance"
	"github.com/prism-gateway/prism/dataplane/credential/internal/remote/remotetest"
)

const (
	canary  = "canary-c5d4"
	vault   = "https://prism.vault.azure.net"
	tenant  = "00000000-0000-0000-0000-00000000beef"
	version = "4387e9f3d6e14c459867679a90fd0f79"
)

// keys answers as Azure Key Vault does, with what stands in it.
type keys struct {
	mu        sync.Mutex
	secrets   map[string]string // by name, or name/version
	expires   time.Time
	asked     []string // paths, of who has logged in
	challenge string   // when set, in place of Azure's
	answer    http.HandlerFunc
}

func (k *keys) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer login-"+canary {
		resource := "https://vault.azure.net"
		if k.challenge != "" {
			resource = k.challenge
		}
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/`+tenant+`", resource="`+resource+`"`)
		refuse(w, http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
		return
	}
	k.asked = append(k.asked, r.URL.Path)
	if k.answer != nil {
		k.answer(w, r)
		return
	}
	name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/secrets/"), "/")
	text, ok := k.secrets[name]
	if !ok || r.URL.Query().Get("api-version") == "" {
		refuse(w, http.StatusNotFound, "SecretNotFound", "A secret with (name/id) "+name+" was not found in this key vault.")
		return
	}
	attributes := map[string]any{"enabled": true, "created": 1493938289, "updated": 1493938289, "recoveryLevel": "Recoverable+Purgeable"}
	if !k.expires.IsZero() {
		attributes["exp"] = k.expires.Unix()
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	json.NewEncoder(w).Encode(map[string]any{"value": text, "id": vault + "/secrets/" + name + "/" + version, "attributes": attributes})
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func (k *keys) put(name, text string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.secrets == nil {
		k.secrets = map[string]string{}
	}
	k.secrets[name] = text
}

// managed is the environment of a program with a managed identity, as App Service gives it: login answers for the platform.
func managed(t *testing.T, login http.HandlerFunc) {
	t.Helper()
	server := httptest.NewServer(login)
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"IDENTITY_ENDPOINT": server.URL + "/msi/token", "IDENTITY_HEADER": "header-" + canary, "MSI_ENDPOINT": "", "IMDS_ENDPOINT": "", "IDENTITY_SERVER_THUMBPRINT": "",
		"AZURE_CLIENT_ID": "", "AZURE_TENANT_ID": "", "AZURE_CLIENT_SECRET": "", "AZURE_CLIENT_CERTIFICATE_PATH": "", "AZURE_FEDERATED_TOKEN_FILE": "",
		"AZURE_SDK_GO_LOGGING": "all",
	} {
		t.Setenv(name, value)
	}
}

// gives is a platform that gives a token for the vault.
func gives(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-IDENTITY-HEADER") != "header-"+canary || r.URL.Query().Get("resource") != "https://vault.azure.net" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]string{
		"access_token": "login-" + canary, "expires_on": strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10), "resource": "https://vault.azure.net", "token_type": "Bearer",
	})
}

// through sends what is for the platform there, and all else to the vault.
type through struct{ vault http.RoundTripper }

func (s through) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" {
		return http.DefaultTransport.RoundTrip(r)
	}
	return s.vault.RoundTrip(r)
}

func provider(t *testing.T, cfg azure.Config) *azure.Provider {
	t.Helper()
	if cfg.VaultURL == "" {
		cfg.VaultURL = vault
	}
	p, err := azure.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func of(t *testing.T, k *keys) *azure.Provider {
	t.Helper()
	return provider(t, azure.Config{Transport: through{remotetest.Serve(t, k)}})
}

func TestConformance(t *testing.T) {
	managed(t, gives)
	k := &keys{}
	conformance.Run(t, conformance.Subject{
		Provider:    of(t, k),
		Type:        "azure-keyvault",
		Put:         func(_ *testing.T, path, text string) { k.put(path, text) },
		Unreachable: provider(t, azure.Config{Transport: through{remotetest.Nobody(t)}}),
	})
}

func TestASecretEndsWhenTheVaultSaysSo(t *testing.T) {
	managed(t, gives)
	for name, want := range map[string]time.Time{
		"never":       {},
		"some day":    time.Date(2031, 5, 4, 3, 2, 1, 0, time.UTC),
		"in the past": time.Date(2021, 5, 4, 3, 2, 1, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			k := &keys{expires: want}
			k.put("orders", `{"username":"u","password":"p"}`)
			k.put("orders/"+version, `{"username":"u","password":"former"}`)
			p := of(t, k)
			for path, password := range map[string]string{"orders": "p", "orders/" + version: "former"} {
				issued, err := p.Fetch(t.Context(), credential.Request{Path: path})
				if err != nil {
					t.Fatal(err)
				}
				if got := issued.Credential; !got.ExpiresAt.Equal(want) || got.Password.Reveal() != password {
					t.Errorf("%s ends %v, want %v, or is another", path, got.ExpiresAt, want)
				}
			}
		})
	}
}

func TestAnswersMeanWhatTheySay(t *testing.T) {
	managed(t, gives)
	said := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { refuse(w, status, code, canary) }
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   error // nil: none of the contract's
		word   string
	}{
		"no such secret":       {said(404, "SecretNotFound"), credential.ErrRefused, "404 SecretNotFound"},
		"not allowed":          {said(403, "Forbidden"), credential.ErrRefused, "403 Forbidden"},
		"a disabled secret":    {said(403, "SecretDisabled"), credential.ErrRefused, "SecretDisabled"},
		"too many requests":    {said(429, "Throttled"), credential.ErrThrottled, "429"},
		"an error inside":      {said(500, "InternalServerError"), nil, "500"},
		"out of service":       {said(503, "ServiceUnavailable"), nil, "503"},
		"an error of no shape": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusBadGateway) }, nil, "502"},
		"half an answer":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"value":"`+canary) }, nil, ""},
		"another answer":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>"+canary) }, nil, "not understood"},
		"no value":             {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"id":"`+canary+`"}`) }, nil, "not understood"},
		"an endless answer": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"value":"%s"}`, strings.Repeat(canary, 200_000))
		}, nil, ""},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://"+canary, http.StatusFound) }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := &keys{answer: tc.answer}
			p := of(t, k)
			var err error
			printed := remotetest.Printed(t, func() { _, err = p.Fetch(t.Context(), credential.Request{Path: "orders"}) })
			check(t, err, tc.want, tc.word)
			if strings.Contains(printed+fmt.Sprintf("%v %+v %#v", err, err, p), canary) {
				t.Errorf("a secret is told: %v", err)
			}
			if len(k.asked) != 1 {
				t.Errorf("asked %d times, want once", len(k.asked))
			}
		})
	}
}

// check compares an error with what it should wrap of the contract, and say.
func check(t *testing.T, err, want error, word string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), word) {
		t.Fatalf("error %v, want one with %q", err, word)
	}
	for _, known := range []error{credential.ErrRefused, credential.ErrThrottled, credential.ErrNoIdentity} {
		if got := errors.Is(err, known); got != (known == want) {
			t.Errorf("error %v is %q: %v", err, known, got)
		}
	}
}

func TestTheIdentityIsToldApart(t *testing.T) {
	for name, tc := range map[string]struct {
		login http.HandlerFunc
		want  error
		word  string
	}{
		"there is none": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"statusCode":400,"message":"`+canary+`"}`)
		}, credential.ErrNoIdentity, "400"},
		"the platform is out of order": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, 500) }, nil, "500"},
		"no token":                     {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, canary) }, credential.ErrNoIdentity, ""},
	} {
		t.Run(name, func(t *testing.T) {
			managed(t, tc.login)
			k := &keys{}
			// The SDK shares tokens within the process, by the identity: each case has its own.
			p := provider(t, azure.Config{ClientID: name, Transport: through{remotetest.Serve(t, k)}})
			_, err := p.Fetch(t.Context(), credential.Request{Path: "orders"})
			check(t, err, tc.want, tc.word)
			if strings.Contains(fmt.Sprintf("%v %+v", err, err), canary) {
				t.Errorf("an answer is told: %v", err)
			}
			if len(k.asked) != 0 {
				t.Error("the vault is asked without a login")
			}
		})
	}
}

func TestThePodsIdentityComesFirst(t *testing.T) {
	managed(t, gives)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("pod-"+canary), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", file)
	t.Setenv("AZURE_CLIENT_ID", "")
	t.Setenv("AZURE_TENANT_ID", "")
	k := &keys{}
	k.put("orders", `{"password":"p"}`)
	logins := make(chan string, 8)
	entra := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host == "prism.vault.azure.net":
			k.ServeHTTP(w, r)
		case strings.HasSuffix(r.URL.Path, "/oauth2/v2.0/token"):
			if err := r.ParseForm(); err != nil {
				t.Error(err)
			}
			logins <- r.Form.Get("client_id") + " " + r.Form.Get("client_assertion") + " " + r.Form.Get("scope")
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(map[string]any{"access_token": "login-" + canary, "token_type": "Bearer", "expires_in": 3600})
		case strings.Contains(r.URL.Path, "discovery/instance"), strings.Contains(r.URL.Path, "openid-configuration"):
			authority := "https://login.microsoftonline.com/" + tenant
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(map[string]any{
				"tenant_discovery_endpoint": authority + "/v2.0/.well-known/openid-configuration", "api-version": "1.1", "metadata": []any{},
				"token_endpoint": authority + "/oauth2/v2.0/token", "authorization_endpoint": authority + "/oauth2/v2.0/authorize", "issuer": authority + "/v2.0",
			})
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	p := provider(t, azure.Config{TenantID: tenant, ClientID: "client-1", Transport: through{remotetest.Serve(t, entra)}})
	if _, err := p.Fetch(t.Context(), credential.Request{Path: "orders"}); err != nil {
		t.Fatal(err)
	}
	if got, want := <-logins, "client-1 pod-"+canary+" https://vault.azure.net/.default"; !strings.HasPrefix(got, want) {
		t.Error("the login is not that of the pod")
	}
}

func TestATokenIsNotSentToAnothersVault(t *testing.T) {
	managed(t, gives)
	k := &keys{challenge: "https://management.azure.com"}
	_, err := of(t, k).Fetch(t.Context(), credential.Request{Path: "orders"})
	check(t, err, nil, "not understood")
	if len(k.asked) != 0 {
		t.Error("a login for something else was sent")
	}
}

func TestConfigIsChecked(t *testing.T) {
	managed(t, gives)
	for name, cfg := range map[string]azure.Config{
		"no vault":               {},
		"a vault without TLS":    {VaultURL: "http://127.0.0.1:8443"},
		"a vault that is no URL": {VaultURL: "prism"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := azure.New(cfg); err == nil {
				t.Error("taken")
			}
		})
	}
}
