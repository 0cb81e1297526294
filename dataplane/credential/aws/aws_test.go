package aws_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/aws"
	"github.com/prism-gateway/prism/dataplane/credential/conformance"
	"github.com/prism-gateway/prism/dataplane/credential/internal/remote/remotetest"
)

const (
	canary = "canary-6e2b"
	region = "eu-west-1"
	arn    = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:/prod/orders-a1B2c3"
)

// manager answers as AWS Secrets Manager does, with what stands in it.
type manager struct {
	mu      sync.Mutex
	secrets map[string]string
	asked   []*http.Request
	answer  http.HandlerFunc // when set, instead
}

func (m *manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, r)
	if m.answer != nil {
		m.answer(w, r)
		return
	}
	var in struct{ SecretId string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("X-Amz-Target") != "secretsmanager.GetSecretValue" {
		refuse(w, http.StatusBadRequest, "InvalidParameterException", "")
		return
	}
	text, ok := m.secrets[in.SecretId]
	if !ok {
		refuse(w, http.StatusBadRequest, "ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	json.NewEncoder(w).Encode(map[string]any{
		"ARN": arn, "Name": in.SecretId, "VersionId": "EXAMPLE1-90ab-cdef-fedc-ba987EXAMPLE", "VersionStages": []string{"AWSCURRENT"},
		"CreatedDate": 1523477145.713, "SecretString": text,
	})
}

func refuse(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-RequestId", "0d3c4d3a-0000-0000-0000-000000000000")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"__type": kind, "Message": message})
}

func (m *manager) put(path, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.secrets == nil {
		m.secrets = map[string]string{}
	}
	m.secrets[path] = text
}

// environment is that of a program whose AWS identity is in variables.
func environment(t *testing.T) {
	t.Helper()
	none := filepath.Join(t.TempDir(), "none")
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": canary, "AWS_SESSION_TOKEN": "session-" + canary,
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_PROFILE": "", "AWS_CA_BUNDLE": "",
	} {
		t.Setenv(name, value)
	}
}

func provider(t *testing.T, cfg aws.Config) *aws.Provider {
	t.Helper()
	p, err := aws.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	environment(t)
	m := &manager{}
	conformance.Run(t, conformance.Subject{
		Provider:    provider(t, aws.Config{Region: region, Transport: remotetest.Serve(t, m)}),
		Type:        "aws-secrets-manager",
		Put:         func(_ *testing.T, path, text string) { m.put(path, text) },
		Unreachable: provider(t, aws.Config{Region: region, Transport: remotetest.Nobody(t)}),
	})
}

func TestRequestsAreSignedForTheRegion(t *testing.T) {
	environment(t)
	m := &manager{}
	m.put("orders", `{"password":"p"}`)
	m.put(arn, `{"password":"p"}`)
	for name, tc := range map[string]struct{ region, variable string }{
		"of the configuration": {region, ""},
		"of the environment":   {"", region},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_REGION", tc.variable)
			p := provider(t, aws.Config{Region: tc.region, Transport: remotetest.Serve(t, m)})
			for _, path := range []string{"orders", arn} {
				issued, err := p.Fetch(t.Context(), credential.Request{Path: path})
				if err != nil {
					t.Fatal(err)
				}
				if issued.Credential.Password.Reveal() != "p" || !issued.Credential.ExpiresAt.IsZero() {
					t.Error("it is not what was put there, or it has an end")
				}
			}
			last := m.asked[len(m.asked)-1]
			if want := "secretsmanager." + region + ".amazonaws.com"; last.Host != want {
				t.Errorf("asked %s, want %s", last.Host, want)
			}
			signature := last.Header.Get("Authorization")
			if !strings.HasPrefix(signature, "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") || !strings.Contains(signature, "/"+region+"/secretsmanager/aws4_request") {
				t.Errorf("signed %.90q", signature)
			}
			if last.Header.Get("X-Amz-Security-Token") != "session-"+canary {
				t.Error("the session's token is not sent")
			}
		})
	}
}

func TestAnswersMeanWhatTheySay(t *testing.T) {
	environment(t)
	said := func(status int, kind string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { refuse(w, status, kind, canary) }
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   error // nil: none of the contract's
		word   string
	}{
		"no such secret":       {said(400, "ResourceNotFoundException"), credential.ErrRefused, "ResourceNotFoundException"},
		"not allowed":          {said(400, "AccessDeniedException"), credential.ErrRefused, "AccessDeniedException"},
		"marked for deletion":  {said(400, "InvalidRequestException"), credential.ErrRefused, "InvalidRequestException"},
		"a key that is gone":   {said(400, "DecryptionFailure"), credential.ErrRefused, "DecryptionFailure"},
		"a false identity":     {said(403, "UnrecognizedClientException"), credential.ErrRefused, "UnrecognizedClientException"},
		"too many requests":    {said(400, "ThrottlingException"), credential.ErrThrottled, "ThrottlingException"},
		"too many, by status":  {said(429, "Slow"), credential.ErrThrottled, "429"},
		"an error inside":      {said(500, "InternalServiceError"), nil, "InternalServiceError"},
		"out of service":       {said(503, "ServiceUnavailable"), nil, "503"},
		"an error of no shape": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusBadGateway) }, nil, "502"},
		"a word with more":     {said(400, "Odd "+canary), credential.ErrRefused, "400"},
		"half an answer":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"SecretString":"`+canary) }, nil, ""},
		"another answer":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>"+canary) }, nil, "not understood"},
		"an endless answer": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"SecretString":"%s"}`, strings.Repeat(canary, 200_000))
		}, nil, ""},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://"+canary, http.StatusFound) }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := &manager{answer: tc.answer}
			p := provider(t, aws.Config{Region: region, Transport: remotetest.Serve(t, m)})
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

func TestTheIdentityIsToldApart(t *testing.T) {
	environment(t)
	t.Run("there is none", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		p := provider(t, aws.Config{Region: region, Transport: remotetest.Nobody(t)})
		_, err := p.Fetch(t.Context(), credential.Request{Path: "orders"})
		check(t, err, credential.ErrNoIdentity, "credentials of the program")
	})
	const role = "arn:aws:iam::123456789012:role/prism"
	sts := func(answer http.HandlerFunc) http.Handler {
		m := &manager{secrets: map[string]string{"orders": `{"password":"p"}`}}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.Host, "sts.") {
				answer(w, r)
				return
			}
			if !strings.Contains(r.Header.Get("Authorization"), "Credential=ASIAROLE/") {
				refuse(w, 403, "UnrecognizedClientException", "")
				return
			}
			m.ServeHTTP(w, r)
		})
	}
	t.Run("a role is assumed", func(t *testing.T) {
		p := provider(t, aws.Config{Region: region, RoleARN: role, Transport: remotetest.Serve(t, sts(func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("Action") != "AssumeRole" || r.FormValue("RoleArn") != role {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			fmt.Fprint(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>`+
				`<SecretAccessKey>x</SecretAccessKey><SessionToken>y</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`)
		}))})
		if _, err := p.Fetch(t.Context(), credential.Request{Path: "orders"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a pod has a role", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte("pod-"+canary), 0o600); err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": "", "AWS_WEB_IDENTITY_TOKEN_FILE": file, "AWS_ROLE_ARN": role} {
			t.Setenv(name, value)
		}
		p := provider(t, aws.Config{Region: region, Transport: remotetest.Serve(t, sts(func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("Action") != "AssumeRoleWithWebIdentity" || r.FormValue("RoleArn") != role || r.FormValue("WebIdentityToken") != "pod-"+canary {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			fmt.Fprint(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>`+
				`<SecretAccessKey>x</SecretAccessKey><SessionToken>y</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`)
		}))})
		if _, err := p.Fetch(t.Context(), credential.Request{Path: "orders"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a role is not given", func(t *testing.T) {
		p := provider(t, aws.Config{Region: region, RoleARN: role, Transport: remotetest.Serve(t, sts(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>`+canary+`</Message></Error></ErrorResponse>`)
		}))})
		_, err := p.Fetch(t.Context(), credential.Request{Path: "orders"})
		check(t, err, credential.ErrNoIdentity, "403 AccessDenied")
		if strings.Contains(err.Error(), canary) {
			t.Errorf("what the server says is told: %v", err)
		}
	})
}

func TestOnlyNamesAndARNsAreAskedFor(t *testing.T) {
	environment(t)
	m := &manager{}
	p := provider(t, aws.Config{Region: region, Transport: remotetest.Serve(t, m)})
	good := []string{"orders", "prod/orders", "prod/orders+v=1.x_y@z", arn, "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:orders-a1B2c3"}
	for _, path := range append(good,
		"/orders", "orders/", "a b", "a?b", "arn:aws:s3:::bucket", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:../x", "arn:aws:secretsmanager:eu-west-1:1:secret:x",
		strings.Repeat("x", 513)) {
		m.put(path, `{"password":"p"}`)
	}
	for path := range m.secrets {
		_, err := p.Fetch(t.Context(), credential.Request{Path: path})
		wanted := false
		for _, g := range good {
			wanted = wanted || g == path
		}
		if wanted && err != nil || !wanted && !errors.Is(err, credential.ErrRefused) {
			t.Errorf("%.60q: %v", path, err)
		}
	}
	if len(m.asked) != len(good) {
		t.Errorf("asked %d times, want %d", len(m.asked), len(good))
	}
}

func TestConfigIsChecked(t *testing.T) {
	environment(t)
	for name, cfg := range map[string]aws.Config{
		"no region":                   {},
		"an endpoint without TLS":     {Region: region, Endpoint: "http://secrets.example.com"},
		"an endpoint that is no URL":  {Region: region, Endpoint: "secrets"},
		"an endpoint with a password": {Region: region, Endpoint: "https://u:" + canary + "@secrets.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := aws.New(cfg)
			if err == nil || strings.Contains(err.Error(), canary) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestTheIdentityIsTheProgramsOwn(t *testing.T) {
	environment(t)
	identity, err := aws.Identity("")
	if err != nil {
		t.Fatal(err)
	}
	got, err := identity.Retrieve(t.Context())
	if err != nil || got.AccessKeyID != "AKIDEXAMPLE" || got.SecretAccessKey != canary {
		t.Errorf("the identity is not that of the environment: %v", err)
	}
}
