package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/servicetoken"
)

// serviceAccountFile is where Kubernetes puts the token of a pod's service account.
const serviceAccountFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// maxTokenBytes bounds a file with a token.
const maxTokenBytes = 64 << 10

// Identity is how a proxy logs in: one of the types of this package.
type Identity interface {
	// login returns the path and the body of the request, and what of it may not be in an error.
	login(ctx context.Context) (path string, body map[string]any, hide []secret.Text, err error)
}

// TokenFile is a Vault token in a file, which something else renews. It is read for each call, and never revoked.
type TokenFile struct {
	// Path is the file.
	Path string
}

// JWT logs in with a JWT, which is read for each login.
type JWT struct {
	// AuthPath is the mount; empty means auth/jwt.
	AuthPath string
	// Role is the role.
	Role string
	// File has the token; empty means that of the pod's service account, or what Audience finds.
	File string
	// Audience is whom a token is for that the platform gives, where no File is named; see servicetoken.
	Audience string
}

// Kubernetes logs in with the token of the pod's service account.
type Kubernetes struct {
	// AuthPath is the mount; empty means auth/kubernetes.
	AuthPath string
	// Role is the role.
	Role string
	// File has the token; empty means where Kubernetes puts it, or what Audience finds.
	File string
	// Audience is whom a token is for that the platform gives, where no File is named; see servicetoken.
	Audience string
}

// AppRole logs in by a role's id and secret.
type AppRole struct {
	// AuthPath is the mount; empty means auth/approle.
	AuthPath string
	// RoleID is the role's id.
	RoleID string
	// SecretIDFile has the secret id.
	SecretIDFile string
}

// AWS logs in as the AWS identity that the program runs as: by a request to STS that the server sends on.
type AWS struct {
	// AuthPath is the mount; empty means auth/aws.
	AuthPath string
	// Role is the role.
	Role string
	// ServerID is what the request names as its receiver (X-Vault-AWS-IAM-Server-ID); optional.
	ServerID string
	// Region is that of the STS endpoint; empty means us-east-1.
	Region string
	// Credentials sign; required.
	Credentials aws.CredentialsProvider
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// jwt is a caller's.
type jwt struct {
	authPath, role string
	token          secret.Text
}

func (t TokenFile) login(context.Context) (string, map[string]any, []secret.Text, error) {
	return "", nil, nil, fmt.Errorf("a token in a file is no login: %w", credential.ErrRefused)
}

func (t TokenFile) read() (secret.Text, error) { return readToken(t.Path) }

func (j jwt) login(context.Context) (string, map[string]any, []secret.Text, error) {
	path, err := mount(j.authPath, "auth/jwt")
	return path, map[string]any{"role": j.role, "jwt": j.token.Reveal()}, []secret.Text{j.token}, err
}

func (j JWT) login(ctx context.Context) (string, map[string]any, []secret.Text, error) {
	token, err := j.read(ctx)
	if err != nil {
		return "", nil, nil, err
	}
	return jwt{authPath: j.AuthPath, role: j.Role, token: token}.login(ctx)
}

func (j JWT) read(ctx context.Context) (secret.Text, error) {
	if j.File != "" || j.Audience == "" {
		return readToken(cmp.Or(j.File, serviceAccountFile))
	}
	source, err := servicetoken.Detect(servicetoken.Config{Audience: j.Audience}) // logins are seldom, and what a platform gives may come later
	if err != nil {
		return secret.Text{}, err
	}
	token, err := source.Token(ctx)
	return token.Text, err
}

func (k Kubernetes) login(ctx context.Context) (string, map[string]any, []secret.Text, error) {
	return JWT{AuthPath: cmp.Or(k.AuthPath, "auth/kubernetes"), Role: k.Role, File: k.File, Audience: k.Audience}.login(ctx)
}

func (a AppRole) login(context.Context) (string, map[string]any, []secret.Text, error) {
	id, err := readToken(a.SecretIDFile)
	if err != nil {
		return "", nil, nil, err
	}
	path, err := mount(a.AuthPath, "auth/approle")
	return path, map[string]any{"role_id": a.RoleID, "secret_id": id.Reveal()}, []secret.Text{id}, err
}

func (a AWS) login(ctx context.Context) (string, map[string]any, []secret.Text, error) {
	path, err := mount(a.AuthPath, "auth/aws")
	if err != nil {
		return "", nil, nil, err
	}
	const body = "Action=GetCallerIdentity&Version=2011-06-15"
	region := cmp.Or(a.Region, "us-east-1")
	address := "https://sts." + region + ".amazonaws.com/"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		return "", nil, nil, fmt.Errorf("region %q: %w", region, credential.ErrRefused)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	if a.ServerID != "" {
		request.Header.Set("X-Vault-AWS-IAM-Server-ID", a.ServerID)
	}
	signer, err := a.Credentials.Retrieve(ctx)
	if err != nil {
		return "", nil, nil, fmt.Errorf("the AWS credentials of the program: %w", err)
	}
	now := time.Now
	if a.Now != nil {
		now = a.Now
	}
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(ctx, signer, request, hex.EncodeToString(sum[:]), "sts", region, now()); err != nil {
		return "", nil, nil, fmt.Errorf("sign: %w", err)
	}
	request.Header.Set("Host", request.Host)
	headers, err := json.Marshal(request.Header)
	if err != nil {
		return "", nil, nil, err
	}
	encode := base64.StdEncoding.EncodeToString
	return path, map[string]any{
		"role": a.Role, "iam_http_request_method": http.MethodPost, "iam_request_url": encode([]byte(address)),
		"iam_request_body": encode([]byte(body)), "iam_request_headers": encode(headers),
	}, []secret.Text{secret.New(signer.SessionToken), secret.New(request.Header.Get("Authorization")), secret.New(encode(headers))}, nil
}

// mount returns the path to log in at.
func mount(authPath, usual string) (string, error) {
	path := strings.Trim(cmp.Or(authPath, usual), "/")
	if !strings.HasPrefix(path, "auth/") {
		return "", fmt.Errorf("%q is not where logins are: want auth/…: %w", authPath, credential.ErrRefused)
	}
	return path + "/login", nil
}

// readToken reads a file that holds a token. That it is not there may pass, so it is no refusal.
func readToken(path string) (secret.Text, error) {
	f, err := os.Open(path)
	if err != nil {
		return secret.Text{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return secret.Text{}, err
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > maxTokenBytes || bytes.ContainsAny(text, "\r\n\x00") {
		return secret.Text{}, fmt.Errorf("%s: is not a token", path)
	}
	return secret.New(string(text)), nil
}
