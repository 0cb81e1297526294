package servicetoken_test

import (
	"context"
	"encoding/base64"
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

	"github.com/prism-gateway/prism/shared/servicetoken"
)

const (
	audience  = "prism"
	canary    = "canary-7d1c"
	projected = "/var/run/secrets/prism/token"
	usual     = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	product   = "/sys/class/dmi/id/product_name"
	chassis   = "/sys/class/dmi/id/chassis_asset_tag"
	azureTag  = "7783-7084-3265-9085-8269-3286-77\n"
)

// jwt makes what looks like a token: nobody here checks its signature.
func jwt(t *testing.T, expires time.Time, audiences any) string {
	t.Helper()
	claims := map[string]any{"sub": "orders", "aud": audiences}
	if !expires.IsZero() {
		claims["exp"] = expires.Unix()
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"ES256"}`)) + "." + encode(payload) + "." + encode([]byte(canary))
}

// root makes a directory with files as a machine has them.
func root(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
}

// metadata answers as the metadata servers of Google and Azure do, and refuses who does not show the header.
func metadata(t *testing.T, expires time.Time) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /computeMetadata/v1/instance/service-accounts/default/identity", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Query().Get("format") != "full" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(w, jwt(t, expires, r.URL.Query().Get("audience")))
	})
	mux.HandleFunc("GET /metadata/identity/oauth2/token", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata") != "true" || r.URL.Query().Get("api-version") == "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		token := jwt(t, time.Time{}, []string{r.URL.Query().Get("resource"), r.URL.Query().Get("client_id")})
		json.NewEncoder(w).Encode(map[string]string{"access_token": token, "expires_on": strconv.FormatInt(expires.Unix(), 10)})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

func TestThePlatformIsDetected(t *testing.T) {
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	server := metadata(t, expires)
	host := strings.TrimPrefix(server.URL, "http://")
	mine, others := jwt(t, expires, audience), jwt(t, expires, []string{"https://kubernetes.default.svc"})
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		write(t, path, text)
		return path
	}
	mineFile, othersFile, opaqueFile := file("mine", mine+"\n"), file("others", others), file("opaque", "s.opaque\n")
	for name, tc := range map[string]struct {
		env      map[string]string
		files    map[string]string
		audience string // empty means audience, - none
		want     servicetoken.Kind
		why      string
		wantErr  []string // in the error; nothing is found
	}{
		"nothing at all": {
			wantErr: []string{"PRISM_TOKEN_FILE is not set", "kubernetes:", "AWS_WEB_IDENTITY_TOKEN_FILE is not set", "AZURE_FEDERATED_TOKEN_FILE is not set", "google:"},
		},
		"a file that is named":                       {env: map[string]string{"PRISM_TOKEN_FILE": opaqueFile}, want: servicetoken.File, why: "PRISM_TOKEN_FILE"},
		"a file that is named needs no audience":     {env: map[string]string{"PRISM_TOKEN_FILE": mineFile}, audience: "-", want: servicetoken.File, why: "PRISM_TOKEN_FILE"},
		"a file that is named comes before all else": {env: map[string]string{"PRISM_TOKEN_FILE": othersFile, "AWS_WEB_IDENTITY_TOKEN_FILE": mineFile, "K_SERVICE": "orders"}, files: map[string]string{usual: mine}, want: servicetoken.File, why: "PRISM_TOKEN_FILE"},
		"an empty variable is none":                  {env: map[string]string{"PRISM_TOKEN_FILE": "", "AWS_WEB_IDENTITY_TOKEN_FILE": mineFile}, want: servicetoken.AWS, why: "AWS_WEB_IDENTITY_TOKEN_FILE"},
		"a pod with a token that is projected for Prism": {
			env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": othersFile}, files: map[string]string{projected: mine, usual: others}, want: servicetoken.Kubernetes, why: projected,
		},
		"a pod whose usual token is for Prism": {files: map[string]string{usual: mine}, want: servicetoken.Kubernetes, why: usual},
		"a pod whose token is for Kubernetes alone": {
			files: map[string]string{usual: others}, wantErr: []string{usual + `: the token is for ["https://kubernetes.default.svc"], not for "prism"`},
		},
		"a pod with an AWS role":           {env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": mineFile}, files: map[string]string{usual: others}, want: servicetoken.AWS, why: "AWS_WEB_IDENTITY_TOKEN_FILE"},
		"AWS's token is for AWS":           {env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": othersFile}, wantErr: []string{"aws: ", "not for"}},
		"AWS's token is not there":         {env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": filepath.Join(dir, "gone")}, wantErr: []string{"aws: ", "no such file"}},
		"a pod with an Azure identity":     {env: map[string]string{"AZURE_FEDERATED_TOKEN_FILE": mineFile}, files: map[string]string{usual: others}, want: servicetoken.Azure, why: "AZURE_FEDERATED_TOKEN_FILE"},
		"a pod with AWS's and Azure's":     {env: map[string]string{"AZURE_FEDERATED_TOKEN_FILE": mineFile, "AWS_WEB_IDENTITY_TOKEN_FILE": othersFile}, want: servicetoken.Azure, why: "AZURE_FEDERATED_TOKEN_FILE"},
		"a machine of Azure":               {files: map[string]string{chassis: azureTag}, want: servicetoken.Azure, why: "Azure"},
		"a machine of Azure, with the pod": {files: map[string]string{chassis: azureTag, usual: mine}, want: servicetoken.Kubernetes, why: usual},
		"a machine of someone else":        {files: map[string]string{chassis: "No Asset Tag\n", product: "KVM\n"}, wantErr: []string{"none of Azure's", "none of Google's"}},
		"a machine of Google":              {files: map[string]string{product: "Google Compute Engine\n"}, want: servicetoken.Google, why: "Google"},
		"a container on Cloud Run":         {env: map[string]string{"K_SERVICE": "orders"}, want: servicetoken.Google, why: "K_SERVICE"},
		"GKE with workload identity":       {env: map[string]string{"GCE_METADATA_HOST": host}, files: map[string]string{usual: others}, want: servicetoken.Google, why: "GCE_METADATA_HOST"},
		"without an audience the platform is not asked": {
			env: map[string]string{"K_SERVICE": "orders"}, files: map[string]string{usual: mine, chassis: azureTag}, audience: "-", wantErr: []string{"no audience is configured"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := servicetoken.Config{Audience: audience, Lookup: lookup(tc.env), Root: root(t, tc.files), Metadata: server.URL}
			if tc.audience == "-" {
				cfg.Audience = ""
			}
			s, err := servicetoken.Detect(cfg)
			if tc.wantErr != nil {
				if !errors.Is(err, servicetoken.ErrNone) {
					t.Fatalf("error %v, want ErrNone", err)
				}
				for _, part := range tc.wantErr {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q lacks %q", err, part)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.Kind() != tc.want || !strings.Contains(s.Why(), tc.why) {
				t.Errorf("found %s because %s, want %s because of %s", s.Kind(), s.Why(), tc.want, tc.why)
			}
			token, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if token.Text.IsZero() || strings.ContainsAny(token.Text.Reveal(), "\n ") {
				t.Error("there is no token, or it has spaces")
			}
			if tc.env["PRISM_TOKEN_FILE"] != opaqueFile && !token.ExpiresAt.Equal(expires) {
				t.Errorf("ends %v, want %v", token.ExpiresAt, expires)
			}
		})
	}
}

func TestATokenIsReadAgainAtHalfOfItsLife(t *testing.T) {
	start := time.Now().Truncate(time.Second)
	now := start
	path := filepath.Join(t.TempDir(), "token")
	first, second := jwt(t, start.Add(time.Hour), audience), jwt(t, start.Add(2*time.Hour), audience)
	s, err := servicetoken.Detect(servicetoken.Config{Lookup: lookup(map[string]string{"PRISM_TOKEN_FILE": path}), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(after time.Duration, want string) {
		t.Helper()
		now = start.Add(after)
		token, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if token.Text.Reveal() != want {
			t.Errorf("after %s another token than wanted", after)
		}
	}
	if _, err := s.Token(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("without a file: %v, want that it does not exist", err)
	}
	write(t, path, first)
	if _, err := s.Token(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("within the same second: %v, want what was found before", err)
	}
	expect(time.Second, first)
	write(t, path, second)
	expect(30*time.Minute, first)
	expect(30*time.Minute+time.Second, second)

	// What is held is used to its end while there is no other.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect(119*time.Minute, second)
	now = start.Add(2 * time.Hour)
	if _, err := s.Token(t.Context()); err == nil {
		t.Error("a token is used after its end")
	}
	write(t, path, second)
	now = now.Add(time.Second)
	if _, err := s.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("a file with a token that has expired: %v", err)
	}
	third := jwt(t, start.Add(5*time.Hour), audience)
	write(t, path, third)
	expect(2*time.Hour+2*time.Second, third)
}

func TestATokenForSomeoneElseIsNotTakenLaterEither(t *testing.T) {
	now := time.Now()
	expires := now.Add(time.Minute)
	dir := root(t, map[string]string{projected: jwt(t, expires, audience)})
	s, err := servicetoken.Detect(servicetoken.Config{Audience: audience, Lookup: lookup(nil), Root: dir, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, projected), jwt(t, expires.Add(time.Hour), "sts.amazonaws.com"))
	now = expires
	if _, err := s.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "not for") {
		t.Errorf("a token for another: %v, want that it is refused", err)
	}
}

func TestManyCallsAskTheMetadataServerOnce(t *testing.T) {
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
		w.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(w, jwt(t, time.Now().Add(time.Hour), audience))
	}))
	t.Cleanup(server.Close)
	s := google(t, server)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := s.Token(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	<-asked
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Token(impatient); !errors.Is(err, context.Canceled) {
		t.Errorf("who does not wait gets %v", err)
	}
	close(answer)
	all.Wait()
	if more := len(asked); more != 0 {
		t.Errorf("asked %d times more", more)
	}
}

func TestAMetadataServerThatFailsIsAskedOnceForAll(t *testing.T) {
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	start := time.Now()
	s, err := servicetoken.Detect(servicetoken.Config{
		Audience: audience, Lookup: lookup(map[string]string{"K_SERVICE": "orders"}), Root: t.TempDir(), Metadata: server.URL, Now: func() time.Time { return start },
	})
	if err != nil {
		t.Fatal(err)
	}
	// Who gives up says nothing to the others.
	impatient, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() {
		_, err := s.Token(impatient)
		gaveUp <- err
	}()
	<-asked
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up gets %v", err)
	}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := s.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "answered 503") {
				t.Errorf("error %v, want what the server answered", err)
			}
		})
	}
	<-asked
	close(answer)
	all.Wait()
	if more := len(asked); more != 0 {
		t.Errorf("asked %d times more", more)
	}
}

func google(t *testing.T, server *httptest.Server) *servicetoken.Source {
	t.Helper()
	s, err := servicetoken.Detect(servicetoken.Config{Audience: audience, Lookup: lookup(map[string]string{"K_SERVICE": "orders"}), Root: t.TempDir(), Metadata: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatIsNoMetadataServerIsNotBelieved(t *testing.T) {
	elsewhere := make(chan struct{}, 1)
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere <- struct{}{} }))
	t.Cleanup(other.Close)
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"without the header": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, canary) }, "is not Google's"},
		"a redirect":         {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }, "answered 302"},
		"an error":           {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusNotFound) }, "answered 404"},
		"no token": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Metadata-Flavor", "Google")
			fmt.Fprint(w, "<html> "+canary)
		}, "is not a token"},
		"a token without end": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Metadata-Flavor", "Google")
			fmt.Fprint(w, strings.Repeat(canary, 10_000))
		}, "is not a token"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tc.answer)
			t.Cleanup(server.Close)
			_, err := google(t, server).Token(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("error %v, want one with %q and nothing of the answer", err, tc.want)
			}
		})
	}
	if len(elsewhere) != 0 {
		t.Error("a redirect was followed")
	}
}

func TestATokenIsPrintedNowhere(t *testing.T) {
	text := jwt(t, time.Now().Add(-time.Hour), audience)
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	write(t, path, text)
	now := time.Now()
	env := map[string]string{"PRISM_TOKEN_FILE": path}
	s, err := servicetoken.Detect(servicetoken.Config{Lookup: lookup(env), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	_, expired := s.Token(t.Context())
	write(t, path, text+"\n"+text)
	now = now.Add(time.Second)
	_, twice := s.Token(t.Context())
	good := jwt(t, time.Now().Add(time.Hour), audience)
	write(t, path, good)
	now = now.Add(time.Second)
	token, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	printed := fmt.Sprintf("%v %v %+v %#v %v %s", expired, twice, token, token, s, s.Why())
	for _, part := range strings.Split(text+"."+good, ".") {
		if strings.Contains(printed, part) {
			t.Errorf("a part of the token is in %s", printed)
		}
	}
	if expired == nil || twice == nil {
		t.Error("a token that has expired or is none is taken")
	}
}
