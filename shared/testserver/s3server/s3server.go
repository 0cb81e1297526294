// Package s3server runs a real S3 server, the Versity gateway over a directory, for a test, on a free port of the loopback
// address, and ends it with the test. What it has stored stays while the test runs.
package s3server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/prism-gateway/prism/shared/testserver/process"
)

// T is the part of testing.TB that a server needs; a bench brings its own.
type T interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
	TempDir() string
}

// The access key that may do everything, and the bucket that every server has.
const (
	Key    = "prism-tests"
	Secret = "a secret+of/the tests"
	Bucket = "items"
)

// Options say what is not usual about a server.
type Options struct {
	// Cert and CertKey are PEM files; with them it speaks TLS.
	Cert, CertKey string
	// Public lets everybody use the bucket, without a key.
	Public bool
}

// forAll is the policy of a public bucket.
const forAll = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::` +
	Bucket + `","arn:aws:s3:::` + Bucket + `/*"]}]}`

// Server is a running S3 server. It belongs to one test.
type Server struct {
	addr    string
	program string
	dir     string
	options Options

	process *os.Process
	ended   chan struct{} // closed when the process has ended
}

// Start runs a server until the test ends. It fails the test when there is no versitygw.
func Start(t T, options Options) *Server {
	t.Helper()
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{program: program, dir: t.TempDir(), options: options}
	for _, dir := range []string{"data", "iam"} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.Kill)
	for range 5 { // another process may take the port between our looking and the server's
		if s.addr, err = freeAddr(); err != nil {
			t.Fatal(err)
		}
		if err = s.run(); err == nil {
			break
		}
	}
	if err == nil {
		_, err = s.Client().CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: aws.String(Bucket)})
	}
	if err == nil && options.Public {
		_, err = s.Client().PutBucketPolicy(context.Background(), &s3.PutBucketPolicyInput{Bucket: aws.String(Bucket), Policy: aws.String(forAll)})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Addr is host:port.
func (s *Server) Addr() string { return s.addr }

// Client is a client of the server's own kind.
func (s *Server) Client() *s3.Client {
	o := s3.Options{
		BaseEndpoint: aws.String("http://" + s.addr), UsePathStyle: true, Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider(Key, Secret, ""),
	}
	if s.options.Cert != "" {
		roots := x509.NewCertPool()
		if pem, err := os.ReadFile(s.options.Cert); err == nil { // else it trusts nobody
			roots.AppendCertsFromPEM(pem)
		}
		o.BaseEndpoint = aws.String("https://" + s.addr)
		o.HTTPClient = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}
	}
	return s3.New(o)
}

// Stop ends the server the polite way and waits for that.
func (s *Server) Stop(t T) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.ended
}

// Kill ends the server at once.
func (s *Server) Kill() {
	if s.process != nil {
		s.process.Kill()
		<-s.ended
	}
}

// Restart runs a server that has ended again, at the same address.
func (s *Server) Restart(t T) {
	t.Helper()
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
}

// Pause stops the server's process so that connections open and nothing answers; Resume lets it go on.
func (s *Server) Pause(t T) {
	t.Helper()
	if err := process.Pause(s.process); err != nil {
		t.Fatal(err)
	}
}

// Resume lets a paused server go on.
func (s *Server) Resume(t T) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// run starts the process and waits until it accepts connections.
func (s *Server) run() error {
	args := []string{"--quiet", "--keep-alive", "--port", s.addr, "--iam-dir", filepath.Join(s.dir, "iam")}
	if s.options.Cert != "" {
		args = append(args, "--cert", s.options.Cert, "--key", s.options.CertKey)
	}
	// It needs a file system with extended attributes: without them its conditional writes are not in one step.
	args = append(args, "posix", "--disable-object-lock-file", filepath.Join(s.dir, "data"))
	cmd := exec.Command(s.program, args...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+Key, "ROOT_SECRET_KEY="+Secret)
	cmd.SysProcAttr = dieWithParent()
	var said strings.Builder
	cmd.Stderr = &said
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		// The kernel ends the server when the thread that started it ends, so the thread is kept as long as the server.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", s.program, err)
	}
	s.process, s.ended = cmd.Process, ended
	for {
		select {
		case <-ended:
			return fmt.Errorf("%s on %s ended before it was ready: %s", s.program, s.addr, said.String())
		case <-time.After(2 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", s.addr); err == nil {
			c.Close()
			return nil
		}
	}
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// find looks for versitygw in .cache/bin of this directory and those above, then on PATH.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		program := filepath.Join(dir, ".cache", "bin", "versitygw")
		if info, err := os.Stat(program); err == nil && info.Mode()&0o111 != 0 {
			return program, nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		break
	}
	program, err := exec.LookPath("versitygw")
	if err != nil {
		return "", errors.New("there is no versitygw in .cache/bin or on PATH; get one with: scripts/fetch s3")
	}
	return program, nil
}
