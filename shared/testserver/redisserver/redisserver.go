// Package redisserver runs a real Redis for a test, on a free port of the loopback address, and ends it with the test.
package redisserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/prism-gateway/prism/shared/certs/authority"
	"github.com/prism-gateway/prism/shared/testserver/process"
)

// T is the part of testing.TB that a server needs; a bench brings its own.
type T interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
	TempDir() string
}

// Options say what is not usual about a server.
type Options struct {
	// Keep writes each change to disk before it is answered, so that Restart finds it.
	Keep bool
	// Args are further arguments, such as "--requirepass", "secret".
	Args []string
	// TLS makes it speak nothing but TLS. Its certificate is for its address, and it asks its clients for none.
	TLS bool
}

// Server is a running Redis. It belongs to one test.
type Server struct {
	addr    string
	program string
	dir     string
	options Options

	process *os.Process
	ended   chan struct{} // closed when the process has ended
}

// Start runs a server until the test ends. It fails the test when there is no redis-server.
func Start(t T, options Options) *Server {
	t.Helper()
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{program: program, dir: t.TempDir(), options: options}
	if options.TLS {
		if err := s.secure(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.kill)
	for range 5 { // another process may take the port between our looking and the server's
		if s.addr, err = freeAddr(); err != nil {
			t.Fatal(err)
		}
		if err = s.run(); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// Addr is host:port.
func (s *Server) Addr() string { return s.addr }

// CAFile is a PEM file with the authority of the certificate of a server with TLS.
func (s *Server) CAFile() string { return filepath.Join(s.dir, "ca.pem") }

// Stop ends the server the polite way and waits for that.
func (s *Server) Stop(t T) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.ended
}

// Kill ends the server at once.
func (s *Server) Kill() { s.kill() }

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

func (s *Server) kill() {
	if s.process != nil {
		s.process.Kill()
		<-s.ended
	}
}

// secure makes the certificate.
func (s *Server) secure() error {
	ca, err := authority.New("a test's Redis", time.Now)
	if err != nil {
		return err
	}
	pair, err := ca.Issue(authority.Request{CommonName: "redis", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true})
	if err != nil {
		return err
	}
	return pair.Write(s.dir, "server")
}

// run starts the process and waits until it accepts connections.
func (s *Server) run() error {
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	appendOnly := "no"
	if s.options.Keep {
		appendOnly = "yes"
	}
	args := []string{"--bind", host, "--dir", s.dir, "--save", "", "--daemonize", "no", "--appendonly", appendOnly, "--appendfsync", "always"}
	if s.options.TLS {
		args = append(args, "--port", "0", "--tls-port", port, "--tls-auth-clients", "no", "--tls-ca-cert-file", s.CAFile(),
			"--tls-cert-file", filepath.Join(s.dir, "server.pem"), "--tls-key-file", filepath.Join(s.dir, "server-key.pem"))
	} else {
		args = append(args, "--port", port)
	}
	cmd := exec.Command(s.program, append(args, s.options.Args...)...)
	cmd.SysProcAttr = dieWithParent()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	started, ready, ended := make(chan error, 1), make(chan string, 1), make(chan struct{})
	go func() {
		// The kernel ends the server when the thread that started it ends, so the thread is kept as long as the server.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			close(ended)
			return
		}
		ready <- untilReady(out)
		io.Copy(io.Discard, out)
		cmd.Wait()
		close(ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", s.program, err)
	}
	s.process, s.ended = cmd.Process, ended
	if said := <-ready; said != "" {
		s.kill()
		return fmt.Errorf("%s on %s ended before it was ready:\n%s", s.program, s.addr, said)
	}
	return nil
}

// untilReady reads the log until the server accepts connections; it returns the log when that never comes.
func untilReady(out io.Reader) string {
	var said strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "eady to accept connections") {
			return ""
		}
		said.WriteString(lines.Text() + "\n")
	}
	return said.String() + "(end of its log)"
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// find looks for redis-server in .cache/bin of this directory and those above, then on PATH.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		program := filepath.Join(dir, ".cache", "bin", "redis-server")
		if info, err := os.Stat(program); err == nil && info.Mode()&0o111 != 0 {
			return program, nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		break
	}
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return "", errors.New("there is no redis-server in .cache/bin or on PATH; get one with: scripts/fetch redis")
	}
	return program, nil
}
