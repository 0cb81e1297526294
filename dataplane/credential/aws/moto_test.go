//go:build cloud && linux

package aws_test

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/credential/aws"
	"github.com/prism-gateway/prism/dataplane/credential/conformance"
)

// These tests ask moto, which speaks the protocols of AWS and, once it is told whom it knows, checks signatures and
// policies: make e2e-cloud.

// free is how many calls moto takes from anybody, which is as many as setUp does.
const free = 5

const role = "arn:aws:iam::123456789012:role/prism"

// moto is a running server and who may do what there.
type moto struct {
	address string
	admin   *secretsmanager.Client // of an identity that may do everything with secrets
}

// start runs moto until the test ends.
func start(t *testing.T) *moto {
	t.Helper()
	program, err := filepath.Abs("../../../.cache/moto/bin/moto_server")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run scripts/fetch moto", err)
	}
	cmd := exec.Command(program, "-H", "127.0.0.1", "-p", "0")
	cmd.Env = append(os.Environ(), fmt.Sprintf("INITIAL_NO_AUTH_ACTION_COUNT=%d", free))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		running := regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if found := running.FindString(lines.Text()); found != "" {
				select {
				case address <- found:
				default: // of a request's line
				}
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-read
		cmd.Wait() // killed, and so always an error
	})
	select {
	case m := <-address:
		return setUp(t, m)
	case <-read:
		t.Fatal("moto ended")
	case <-time.After(time.Minute):
		t.Fatal("moto did not start within a minute")
	}
	return nil
}

// setUp makes an identity for the tests, who may also become a role, and leaves its key in the environment.
func setUp(t *testing.T, address string) *moto {
	t.Helper()
	const everything = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["secretsmanager:*","sts:AssumeRole"],"Resource":"*"}]}`
	const reading = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":"*"}]}`
	ask := func(action string, form url.Values) []byte {
		form.Set("Action", action)
		form.Set("Version", "2010-05-08")
		return call(t, address, "iam", form)
	}
	ask("CreateUser", url.Values{"UserName": {"prism"}})
	ask("PutUserPolicy", url.Values{"UserName": {"prism"}, "PolicyName": {"all"}, "PolicyDocument": {everything}})
	ask("CreateRole", url.Values{"RoleName": {"prism"}, "AssumeRolePolicyDocument": {`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"AWS":"*"}}]}`}})
	ask("PutRolePolicy", url.Values{"RoleName": {"prism"}, "PolicyName": {"read"}, "PolicyDocument": {reading}})
	var key struct {
		ID     string `xml:"CreateAccessKeyResult>AccessKey>AccessKeyId"`
		Secret string `xml:"CreateAccessKeyResult>AccessKey>SecretAccessKey"`
	}
	if err := xml.Unmarshal(ask("CreateAccessKey", url.Values{"UserName": {"prism"}}), &key); err != nil || key.ID == "" {
		t.Fatalf("no access key: %v", err)
	}
	environment(t)
	t.Setenv("AWS_ACCESS_KEY_ID", key.ID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", key.Secret)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_ENDPOINT_URL_STS", address)
	return &moto{address, secretsmanager.New(secretsmanager.Options{
		Region: region, BaseEndpoint: &address, Credentials: credentials.NewStaticCredentialsProvider(key.ID, key.Secret, ""),
	})}
}

// call does one of the calls that anybody may do.
func call(t *testing.T, address, service string, form url.Values) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=none/20260101/"+region+"/"+service+"/aws4_request, SignedHeaders=host, Signature=none")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d, %v: %s", form.Get("Action"), response.StatusCode, err, body)
	}
	return body
}

// put makes a secret stand at a name.
func (m *moto) put(t *testing.T, name, text string) (arn string) {
	t.Helper()
	in := &secretsmanager.PutSecretValueInput{SecretId: &name, SecretString: &text}
	out, err := m.admin.PutSecretValue(t.Context(), in)
	if missing := (*types.ResourceNotFoundException)(nil); errors.As(err, &missing) {
		made, err := m.admin.CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{Name: &name, SecretString: &text})
		if err != nil {
			t.Fatal(err)
		}
		return *made.ARN
	}
	if err != nil {
		t.Fatal(err)
	}
	return *out.ARN
}

func TestMoto(t *testing.T) {
	m := start(t)
	cfg := aws.Config{Region: region, Endpoint: m.address}
	p := provider(t, cfg)
	fetch := func(t *testing.T, p *aws.Provider, path string) (string, error) {
		t.Helper()
		issued, err := p.Fetch(t.Context(), credential.Request{Path: path})
		return issued.Credential.Password.Reveal(), err
	}
	t.Run("conformance", func(t *testing.T) {
		unreachable := provider(t, aws.Config{Region: region, Endpoint: "http://127.0.0.1:1"})
		conformance.Run(t, conformance.Subject{
			Provider: p, Type: "aws-secrets-manager", Unreachable: unreachable,
			Put: func(t *testing.T, path, text string) { m.put(t, path, text) },
		})
	})
	t.Run("by its ARN", func(t *testing.T) {
		arn := m.put(t, "prod/orders", `{"password":"p"}`)
		if got, err := fetch(t, p, arn); err != nil || got != "p" {
			t.Errorf("%s: %v", arn, err)
		}
		if got, err := fetch(t, p, "prod/orders"); err != nil || got != "p" {
			t.Error(err)
		}
	})
	t.Run("binary", func(t *testing.T) {
		if _, err := m.admin.CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{Name: sdk.String("binary"), SecretBinary: []byte(`{"password":"b"}`)}); err != nil {
			t.Fatal(err)
		}
		if got, err := fetch(t, p, "binary"); err != nil || got != "b" {
			t.Error(err)
		}
	})
	t.Run("deleted", func(t *testing.T) {
		m.put(t, "deleted", `{"password":"p"}`)
		if _, err := m.admin.DeleteSecret(t.Context(), &secretsmanager.DeleteSecretInput{SecretId: sdk.String("deleted")}); err != nil {
			t.Fatal(err)
		}
		_, err := fetch(t, p, "deleted")
		check(t, err, credential.ErrRefused, "InvalidRequestException")
	})
	t.Run("as a role", func(t *testing.T) {
		m.put(t, "role", `{"password":"r"}`)
		cfg := cfg
		cfg.RoleARN = role
		if got, err := fetch(t, provider(t, cfg), "role"); err != nil || got != "r" {
			t.Error(err)
		}
	})
	t.Run("as a role that is not there", func(t *testing.T) {
		cfg := cfg
		cfg.RoleARN = role + "-none"
		_, err := fetch(t, provider(t, cfg), "role")
		if err == nil {
			t.Error("read with a role that is not there")
		}
	})
	t.Run("with a false key", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", canary)
		_, err := fetch(t, provider(t, cfg), "role")
		check(t, err, credential.ErrRefused, "the server answered 403")
		if strings.Contains(err.Error(), canary) {
			t.Error("the key is told")
		}
	})
	t.Run("without time", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Fetch(ctx, credential.Request{Path: "role"}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
