package google_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/conformance"
	"github.com/prism-gateway/prism/dataplane/credential/google"
	"github.com/prism-gateway/prism/dataplane/credential/internal/remote/remotetest"
)

const (
	canary  = "canary-33f9"
	project = "prism-test"
)

// manager answers as Google Secret Manager does, with what stands in it.
type manager struct {
	key *rsa.PublicKey // of the account that may ask; nil: anyone may

	mu      sync.Mutex
	secrets map[string]string // by the version's full name
	asked   []string          // paths
	damaged bool
	answer  http.HandlerFunc // when set, instead
}

func (m *manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, r.URL.Path)
	if m.answer != nil {
		m.answer(w, r)
		return
	}
	if m.key != nil && !signed(r.Header.Get("Authorization"), m.key) {
		refuse(w, 401, "UNAUTHENTICATED", "CREDENTIALS_MISSING", "Request had invalid authentication credentials.")
		return
	}
	name, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/v1/"), ":access")
	text, found := m.secrets[name]
	if !ok || !found {
		refuse(w, 404, "NOT_FOUND", "", "Secret ["+name+"] not found or has no versions.")
		return
	}
	sum := crc32.Checksum([]byte(text), crc32.MakeTable(crc32.Castagnoli))
	if m.damaged {
		sum++
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	json.NewEncoder(w).Encode(map[string]any{
		"name":    strings.Replace(name, "/latest", "/7", 1),
		"payload": map[string]string{"data": base64.StdEncoding.EncodeToString([]byte(text)), "dataCrc32c": strconv.Itoa(int(sum))},
	})
}

// signed reports whether a header has a token that the key's owner signed.
func signed(header string, key *rsa.PublicKey) bool {
	token, ok := strings.CutPrefix(header, "Bearer ")
	parts := strings.Split(token, ".")
	if !ok || len(parts) != 3 {
		return false
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	return err == nil && rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) == nil
}

func refuse(w http.ResponseWriter, code int, status, reason, message string) {
	said := map[string]any{"code": code, "message": message, "status": status}
	if reason != "" {
		said["details"] = []any{map[string]any{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}}
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"error": said})
}

func (m *manager) put(name, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.secrets == nil {
		m.secrets = map[string]string{}
	}
	m.secrets[name] = text
}

// account makes the key file of a service account and returns its public key.
func account(t *testing.T) (file string, key *rsa.PublicKey) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, map[string]string{
		"type": "service_account", "project_id": project, "private_key_id": "1", "client_id": "1", "client_email": "prism@prism-test.iam.gserviceaccount.com",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": "https://oauth2.googleapis.com/token",
	}), &private.PublicKey
}

func write(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "account.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func provider(t *testing.T, cfg google.Config) *google.Provider {
	t.Helper()
	cfg.Project = project
	p, err := google.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	file, key := account(t)
	m := &manager{key: key}
	conformance.Run(t, conformance.Subject{
		Provider: provider(t, google.Config{CredentialsFile: file, Transport: remotetest.Serve(t, m)}),
		Type:     "gcp-secret-manager",
		Put: func(_ *testing.T, path, text string) {
			m.put("projects/"+project+"/secrets/"+path+"/versions/latest", text)
		},
		Unreachable: provider(t, google.Config{CredentialsFile: file, Transport: remotetest.Nobody(t)}),
	})
}

func TestNamesAreThoseOfVersions(t *testing.T) {
	file, _ := account(t)
	for name, tc := range map[string]struct{ path, want string }{
		"a name":                       {"orders", "projects/prism-test/secrets/orders/versions/latest"},
		"a secret of another project":  {"projects/other-1/secrets/orders", "projects/other-1/secrets/orders/versions/latest"},
		"a version":                    {"projects/other-1/secrets/orders/versions/3", "projects/other-1/secrets/orders/versions/3"},
		"a version by its alias":       {"projects/123456/secrets/orders/versions/stable", "projects/123456/secrets/orders/versions/stable"},
		"a project of a domain":        {"projects/example.com:shop/secrets/orders", "projects/example.com:shop/secrets/orders/versions/latest"},
		"a secret of a region":         {"projects/other-1/locations/europe-west4/secrets/o", "projects/other-1/locations/europe-west4/secrets/o/versions/latest"},
		"a name with a slash":          {"prod/orders", ""},
		"a way out":                    {"projects/other-1/secrets/../../x", ""},
		"another resource":             {"projects/other-1/topics/orders", ""},
		"a query":                      {"projects/other-1/secrets/orders?x=1", ""},
		"an escape":                    {"projects/other-1/secrets/orders%2f", ""},
		"another method":               {"projects/other-1/secrets/orders/versions/3:destroy", ""},
		"a version of a version":       {"projects/other-1/secrets/o/versions/1/versions/2", ""},
		"a name that is too long":      {strings.Repeat("x", 256), ""},
		"a secret without its project": {"secrets/orders", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := &manager{}
			m.put(tc.want, `{"password":"p"}`)
			p := provider(t, google.Config{CredentialsFile: file, Transport: remotetest.Serve(t, m)})
			_, err := p.Fetch(t.Context(), credential.Request{Path: tc.path})
			switch {
			case tc.want == "" && (!errors.Is(err, credential.ErrRefused) || len(m.asked) != 0):
				t.Errorf("asked for %q: %v", m.asked, err)
			case tc.want != "" && (err != nil || len(m.asked) != 1 || m.asked[0] != "/v1/"+tc.want+":access"):
				t.Errorf("asked for %q, want %s: %v", m.asked, tc.want, err)
			}
		})
	}
}

func TestAnswersMeanWhatTheySay(t *testing.T) {
	// What makes the SDK log its answers elsewhere may not do so here.
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	file, _ := account(t)
	said := func(code int, status, reason string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { refuse(w, code, status, reason, canary) }
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   error // nil: none of the contract's
		word   string
	}{
		"no such secret":       {said(404, "NOT_FOUND", ""), credential.ErrRefused, "404"},
		"not allowed":          {said(403, "PERMISSION_DENIED", "IAM_PERMISSION_DENIED"), credential.ErrRefused, "403 IAM_PERMISSION_DENIED"},
		"a disabled version":   {said(400, "FAILED_PRECONDITION", ""), credential.ErrRefused, "400"},
		"a false identity":     {said(401, "UNAUTHENTICATED", "ACCESS_TOKEN_TYPE_UNSUPPORTED"), credential.ErrRefused, "401"},
		"too many requests":    {said(429, "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED"), credential.ErrThrottled, "429"},
		"an error inside":      {said(500, "INTERNAL", ""), nil, "500"},
		"out of service":       {said(503, "UNAVAILABLE", ""), nil, "503"},
		"too late":             {said(504, "DEADLINE_EXCEEDED", ""), nil, "504"},
		"an error of no shape": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusBadGateway) }, nil, "502"},
		"half an answer":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"payload":{"data":"`+canary) }, nil, ""},
		"another answer":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>"+canary) }, nil, "not understood"},
		"another object":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"payload":"`+canary+`"}`) }, nil, "not understood"},
		"an endless answer": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"payload":{"data":"%s"}}`, strings.Repeat("eHh4", 500_000))
		}, nil, ""},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://"+canary, http.StatusFound) }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := &manager{answer: tc.answer}
			p := provider(t, google.Config{CredentialsFile: file, Transport: remotetest.Serve(t, m)})
			var err error
			printed := remotetest.Printed(t, func() { _, err = p.Fetch(t.Context(), credential.Request{Path: "orders"}) })
			check(t, err, tc.want, tc.word)
			if strings.Contains(printed+fmt.Sprintf("%v %+v %#v", err, err, p), canary) {
				t.Errorf("a secret is told: %v", err)
			}
			if len(m.asked) != 1 {
				t.Errorf("asked %d times, want once", len(m.asked))
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

func TestASecretIsPrintedNowhere(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	file, key := account(t)
	m := &manager{key: key}
	m.put("projects/"+project+"/secrets/orders/versions/latest", `{"password":"`+canary+`"}`)
	p := provider(t, google.Config{CredentialsFile: file, Transport: remotetest.Serve(t, m)})
	var issued credential.Issued
	printed := remotetest.Printed(t, func() {
		var err error
		if issued, err = p.Fetch(t.Context(), credential.Request{Path: "orders"}); err != nil {
			t.Error(err)
		}
	})
	encoded := base64.StdEncoding.EncodeToString([]byte(canary))
	if text := printed + fmt.Sprintf("%v %+v %#v", issued, issued, issued.Credential); strings.Contains(text, canary) || strings.Contains(text, encoded[:8]) {
		t.Error("a secret is printed")
	}
}

func TestADamagedSecretIsNotUsed(t *testing.T) {
	file, _ := account(t)
	m := &manager{damaged: true}
	m.put("projects/"+project+"/secrets/orders/versions/latest", `{"password":"p"}`)
	p := provider(t, google.Config{CredentialsFile: file, Transport: remotetest.Serve(t, m)})
	_, err := p.Fetch(t.Context(), credential.Request{Path: "orders"})
	check(t, err, nil, "damaged")
}

func TestTheIdentityIsToldApart(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{}
	for name, file := range map[string]string{
		"no file":                  filepath.Join(t.TempDir(), "none"),
		"a file of another kind":   write(t, map[string]string{"type": "authorized_user", "client_id": "1", "client_secret": canary, "refresh_token": canary}),
		"a file with a broken key": write(t, map[string]string{"type": "service_account", "client_email": "x", "private_key": canary + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))[:40]}),
	} {
		t.Run(name, func(t *testing.T) {
			p := provider(t, google.Config{CredentialsFile: file, Transport: remotetest.Serve(t, m)})
			_, err := p.Fetch(t.Context(), credential.Request{Path: "orders"})
			check(t, err, credential.ErrNoIdentity, "credentials of the program")
			if strings.Contains(err.Error(), canary) {
				t.Errorf("a secret is told: %v", err)
			}
		})
	}
	if len(m.asked) != 0 {
		t.Error("the server is asked without an identity")
	}
	// Once the file is there, it is found.
	later := filepath.Join(t.TempDir(), "account.json")
	file, public := account(t)
	m.key = public
	m.put("projects/"+project+"/secrets/orders/versions/latest", `{"password":"p"}`)
	p := provider(t, google.Config{CredentialsFile: later, Transport: remotetest.Serve(t, m)})
	if _, err := p.Fetch(t.Context(), credential.Request{Path: "orders"}); err == nil {
		t.Error("there is no file, and no error")
	}
	if err := os.Rename(file, later); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Fetch(t.Context(), credential.Request{Path: "orders"}); err != nil {
		t.Error(err)
	}
}

func TestTheMachinesIdentityIsFound(t *testing.T) {
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if !strings.HasSuffix(r.URL.Path, "/service-accounts/default/token") || r.Header.Get("Metadata-Flavor") != "Google" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"machine-`+canary+`","expires_in":3599,"token_type":"Bearer"}`)
	}))
	t.Cleanup(machine.Close)
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(machine.URL, "http://"))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("HOME", t.TempDir()) // where gcloud leaves a person's own
	m := &manager{}
	m.put("projects/"+project+"/secrets/orders/versions/latest", `{"password":"p"}`)
	logins := make(chan string, 1)
	p := provider(t, google.Config{Transport: remotetest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		logins <- r.Header.Get("Authorization")
		m.ServeHTTP(w, r)
	}))})
	if _, err := p.Fetch(t.Context(), credential.Request{Path: "orders"}); err != nil {
		t.Fatal(err)
	}
	if <-logins != "Bearer machine-"+canary {
		t.Error("the login is not that of the machine")
	}
}

func TestAServerWithoutTLSGetsNoLogin(t *testing.T) {
	m := &manager{}
	m.put("projects/"+project+"/secrets/orders/versions/latest", `{"password":"p"}`)
	logins := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		logins <- r.Header.Get("Authorization")
		m.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	file, _ := account(t)
	p := provider(t, google.Config{CredentialsFile: file, Endpoint: server.URL})
	if _, err := p.Fetch(t.Context(), credential.Request{Path: "orders"}); err != nil {
		t.Fatal(err)
	}
	if login := <-logins; login != "" {
		t.Error("a login is sent without TLS")
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]google.Config{
		"no project":                 {},
		"what is no project":         {Project: "a/b"},
		"an endpoint without TLS":    {Project: project, Endpoint: "http://secrets.example.com"},
		"an endpoint that is no URL": {Project: project, Endpoint: "secretmanager"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := google.New(cfg); err == nil {
				t.Error("taken")
			}
		})
	}
}
