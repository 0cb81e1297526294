// Package postgresserver runs a real PostgreSQL for a test, on a free port of the loopback address, and ends it with the
// test.
package postgresserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prism-gateway/prism/shared/certs/authority"
)

// T is the part of testing.TB that a server needs; a bench brings its own.
type T interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
}

// The superuser of every server.
const (
	User     = "admin"
	Password = "an admin's password"
)

// Options say what is not usual about a server.
type Options struct {
	// Keep makes what was acknowledged survive a crash of the machine; without it only that of the process.
	Keep bool
	// Settings are further lines of postgresql.conf, such as "max_connections=20".
	Settings []string
	// Files are files to put into the data directory, by name, readable only by the server.
	Files map[string][]byte
	// Trust is a role that needs no password, and may make schemas and tables in the database postgres; empty: none.
	Trust string
	// TLS makes it refuse connections without TLS. Its certificate is for its address.
	TLS bool
}

// Server is a running PostgreSQL. It belongs to one test.
type Server struct {
	addr     string
	programs string // the directory of initdb and postgres
	dir      string
	options  Options
	as       *syscall.Credential // nil: as this user

	process *os.Process
	ended   chan struct{} // closed when the process has ended
}

// Start runs a server until the test ends. It fails the test when there is no PostgreSQL.
func Start(t T, options Options) *Server {
	t.Helper()
	s := &Server{options: options}
	if err := s.prepare(); err != nil {
		if s.dir != "" {
			os.RemoveAll(s.dir)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(s.dir)
	})
	var err error
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
func (s *Server) CAFile() string { return filepath.Join(s.data(), "ca.pem") }

// Log is what it has written since it was ready the first time.
func (s *Server) Log(t T) string {
	t.Helper()
	text, err := os.ReadFile(s.log())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Stop ends the server the polite way, without waiting for its clients, and waits for that.
func (s *Server) Stop(t T) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGINT); err != nil {
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
	var err error
	for range 50 { // what a killed server began ends a moment after it
		if err = s.run(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// prepare makes the data directory. PostgreSQL refuses to run as root, so root lets another user run it.
func (s *Server) prepare() (err error) {
	if s.programs, err = find(); err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp("", "postgres"); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		if s.as, err = other(); err != nil {
			return err
		}
		if err := os.Chown(s.dir, int(s.as.Uid), int(s.as.Gid)); err != nil {
			return err
		}
	}
	if err := s.file("password", []byte(Password)); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.programs, "initdb"), "-D", s.data(), "-U", User, "--pwfile="+filepath.Join(s.dir, "password"),
		"-A", "scram-sha-256", "--no-sync", "--locale=C", "--encoding=UTF8")
	cmd.Dir, cmd.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: s.as}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := s.trust(); err != nil {
		return err
	}
	if err := s.admit(); err != nil {
		return err
	}
	if err := s.secure(); err != nil {
		return err
	}
	for name, content := range s.options.Files {
		if err := s.file(filepath.Join("data", name), content); err != nil {
			return err
		}
	}
	return nil
}

// secure gives a server with TLS its certificate.
func (s *Server) secure() error {
	if !s.options.TLS {
		return nil
	}
	ca, err := authority.New("a test's PostgreSQL", time.Now)
	if err != nil {
		return err
	}
	pair, err := ca.Issue(authority.Request{CommonName: "postgres", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true})
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"server.pem": pair.Certificate, "server-key.pem": []byte(pair.Key.Reveal()), "ca.pem": pair.Authority,
	} {
		if err := s.file(filepath.Join("data", name), content); err != nil {
			return err
		}
	}
	return nil
}

// trust makes the role that needs no password, before the server runs.
func (s *Server) trust() error {
	role := s.options.Trust
	if role == "" {
		return nil
	}
	cmd := exec.Command(filepath.Join(s.programs, "postgres"), "--single", "-D", s.data(), "postgres")
	cmd.Dir, cmd.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: s.as}
	cmd.Stdin = strings.NewReader(fmt.Sprintf("CREATE ROLE %q LOGIN\nGRANT CREATE ON DATABASE postgres TO %[1]q\nGRANT CREATE ON SCHEMA public TO %[1]q\n", role))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "ERROR") {
		return fmt.Errorf("postgres --single: %w\n%s", err, out)
	}
	return nil
}

// admit says who may come in how.
func (s *Server) admit() error {
	kind, lines := "host", ""
	if s.options.TLS {
		kind = "hostssl"
	}
	if s.options.Trust != "" {
		lines = fmt.Sprintf("%s all %q 127.0.0.1/32 trust\n", kind, s.options.Trust)
	}
	lines += kind + " all all 127.0.0.1/32 scram-sha-256\n"
	return s.file(filepath.Join("data", "pg_hba.conf"), []byte(lines))
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) log() string { return filepath.Join(s.dir, "log") }

func (s *Server) file(name string, content []byte) error {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	if s.as == nil {
		return nil
	}
	return os.Chown(path, int(s.as.Uid), int(s.as.Gid))
}

// other is the user that runs the server for root.
func other() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

// run starts the process and waits until it accepts connections.
func (s *Server) run() error {
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	args := []string{"-D", s.data(), "-h", host, "-p", port, "-c", "unix_socket_directories=", "-c", "log_min_messages=log",
		"-c", "shared_buffers=32MB", "-c", "dynamic_shared_memory_type=mmap"}
	if !s.options.Keep {
		args = append(args, "-c", "fsync=off", "-c", "full_page_writes=off")
	}
	if s.options.TLS {
		args = append(args, "-c", "ssl=on", "-c", "ssl_cert_file=server.pem", "-c", "ssl_key_file=server-key.pem")
	}
	for _, line := range s.options.Settings {
		args = append(args, "-c", line)
	}
	cmd := exec.Command(filepath.Join(s.programs, "postgres"), args...)
	cmd.Dir, cmd.SysProcAttr = s.dir, dieWithParent()
	cmd.SysProcAttr.Credential = s.as
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	started, ready, ended := make(chan error, 1), make(chan string, 1), make(chan struct{})
	go func() {
		// The kernel ends the server when the thread that started it ends, so the thread is kept as long as the server.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		defer log.Close()
		if err != nil {
			close(ended)
			return
		}
		ready <- untilReady(out)
		io.Copy(log, out)
		cmd.Wait()
		close(ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	s.process, s.ended = cmd.Process, ended
	if said := <-ready; said != "" {
		s.Kill()
		return fmt.Errorf("postgres on %s ended before it was ready:\n%s", s.addr, said)
	}
	return nil
}

// untilReady reads the log until the server accepts connections; it returns the log when that never comes.
func untilReady(out io.Reader) string {
	var said strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "ready to accept connections") {
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

// find looks for the programs in .cache/bin of this directory and those above, then on PATH. Links are followed, for
// PostgreSQL finds its own files beside its programs.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if program, err := filepath.EvalSymlinks(filepath.Join(dir, ".cache", "bin", "postgres")); err == nil {
			return filepath.Dir(program), nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		break
	}
	if program, err := exec.LookPath("postgres"); err == nil {
		if program, err = filepath.EvalSymlinks(program); err == nil {
			return filepath.Dir(program), nil
		}
	}
	return "", errors.New("there is no postgres in .cache/bin or on PATH; get one with: scripts/fetch postgres")
}
