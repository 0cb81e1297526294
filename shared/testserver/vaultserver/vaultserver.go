// Package vaultserver runs a real OpenBao, which speaks the API of Vault, for a test, on a free port of the loopback
// address, and ends it with the test.
package vaultserver

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
	// Keep makes it keep what it has over Restart; without it that is lost with the process.
	Keep bool
	// Plain makes it speak without TLS.
	Plain bool
}

// Server is a running server, unsealed. It belongs to one test.
type Server struct {
	addr, dir, program string
	options            Options
	ca                 []byte
	client             *http.Client
	root, key          string

	process *os.Process
	ended   chan struct{} // closed when the process has ended
}

// Start runs a server until the test ends. It fails the test when there is no bao.
func Start(t T, options Options) *Server {
	t.Helper()
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: t.TempDir(), program: program, options: options}
	t.Cleanup(s.Kill)
	for range 5 { // another process may take the port between our looking and the server's
		if err = s.prepare(); err != nil {
			t.Fatal(err)
		}
		if err = s.run(); err == nil {
			break
		}
	}
	if err == nil {
		err = s.initialize()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Address is the server's URL.
func (s *Server) Address() string {
	if s.options.Plain {
		return "http://" + s.addr
	}
	return "https://" + s.addr
}

// CAFile is a PEM file with the authority of its certificate.
func (s *Server) CAFile() string { return filepath.Join(s.dir, "ca.pem") }

// RootToken may do everything.
func (s *Server) RootToken() string { return s.root }

// AuditFile has a line for each request and each answer.
func (s *Server) AuditFile() string { return filepath.Join(s.dir, "audit.log") }

// printed is the file with what the process said.
func (s *Server) printed() string { return filepath.Join(s.dir, "output.log") }

// Requests counts the requests since the start whose path begins so, such as "database/creds/".
func (s *Server) Requests(t T, path string) int {
	t.Helper()
	return len(s.RequestTimes(t, path))
}

// RequestTimes are when the requests since the start came whose path begins so.
func (s *Server) RequestTimes(t T, path string) []time.Time {
	t.Helper()
	f, err := os.Open(s.AuditFile())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []time.Time
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Time    time.Time `json:"time"`
			Type    string    `json:"type"`
			Request struct {
				Path string `json:"path"`
			} `json:"request"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Type == "request" && strings.HasPrefix(line.Request.Path, path) {
			out = append(out, line.Time)
		}
	}
	return out
}

// Do makes a request with the root token and returns the answer's data. It fails the test when it is refused.
func (s *Server) Do(t T, method, path string, body any) map[string]any {
	t.Helper()
	out, err := s.try(method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *Server) try(method, path string, body any) (map[string]any, error) {
	return s.As(s.root, method, path, body)
}

// As makes a request with a token and returns the answer, or an error with what the server said. An empty token is none.
func (s *Server) As(token, method, path string, body any) (map[string]any, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest(method, s.Address()+"/v1/"+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	request.Header.Set("X-Vault-Token", token)
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode >= 300 {
		return nil, fmt.Errorf("openbao: %s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(text))
	}
	out := map[string]any{}
	if len(text) > 0 {
		err = json.Unmarshal(text, &out)
	}
	return out, err
}

// Kill ends the server at once.
func (s *Server) Kill() {
	if s.process != nil {
		s.process.Kill()
		<-s.ended
	}
}

// Restart runs a server that has ended again, at the same address, and unseals it. Without Keep it has forgotten everything,
// and its root token is another.
func (s *Server) Restart(t T) {
	t.Helper()
	err := s.run()
	if err == nil && s.options.Keep {
		err = s.unseal()
	} else if err == nil {
		err = s.initialize()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Seal makes it answer nothing but that it is sealed, until Unseal.
func (s *Server) Seal(t T) {
	t.Helper()
	s.Do(t, http.MethodPut, "sys/seal", nil)
}

// Unseal ends what Seal began.
func (s *Server) Unseal(t T) {
	t.Helper()
	if err := s.unseal(); err != nil {
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

// prepare makes the certificates and the configuration.
func (s *Server) prepare() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.addr = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	if s.ca == nil {
		if err := s.certificates(); err != nil {
			return err
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.ca)
	s.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	storage := `storage "inmem" {}`
	if s.options.Keep {
		data := filepath.Join(s.dir, "data")
		if err := os.MkdirAll(data, 0o700); err != nil {
			return err
		}
		storage = fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = \"one\"\n  performance_multiplier = 1\n}\ncluster_addr = \"https://127.0.0.1:%s\"", data, "8201")
	}
	secured := "tls_disable = true"
	if !s.options.Plain {
		secured = fmt.Sprintf("tls_cert_file = %q\n  tls_key_file = %q", filepath.Join(s.dir, "server.pem"), filepath.Join(s.dir, "server-key.pem"))
	}
	config := fmt.Sprintf("%s\nlistener \"tcp\" {\n  address = %q\n  cluster_address = \"127.0.0.1:0\"\n  %s\n}\napi_addr = %q\nlog_level = \"warn\"\nunsafe_allow_api_audit_creation = true\n",
		storage, s.addr, secured, s.Address())
	return os.WriteFile(filepath.Join(s.dir, "config.hcl"), []byte(config), 0o600)
}

func (s *Server) certificates() error {
	ca, err := authority.New("a test's OpenBao", time.Now)
	if err != nil {
		return err
	}
	pair, err := ca.Issue(authority.Request{CommonName: "openbao", DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true})
	if err != nil {
		return err
	}
	s.ca = pair.Authority
	return pair.Write(s.dir, "server")
}

// run starts the process and waits until it answers.
func (s *Server) run() error {
	cmd := exec.Command(s.program, "server", "-config="+filepath.Join(s.dir, "config.hcl"))
	cmd.SysProcAttr = dieWithParent()
	printed, err := os.OpenFile(s.printed(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer printed.Close()
	cmd.Stdout, cmd.Stderr = printed, printed
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		// The kernel ends the server when the thread that started it ends, so the thread is kept as long as the server.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // that it ended is what matters
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.process, s.ended = cmd.Process, ended
	return s.until("answers", func() bool {
		response, err := s.client.Get(s.Address() + "/v1/sys/health?standbyok=true&sealedcode=200&uninitcode=200")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// until waits for what the server becomes.
func (s *Server) until(what string, is func() bool) error {
	for limit := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		select {
		case <-s.ended:
			text, err := os.ReadFile(s.printed())
			return errors.Join(fmt.Errorf("openbao ended: %s", text), err)
		default:
		}
		if time.Now().After(limit) {
			return fmt.Errorf("openbao: it is not seen that it %s", what)
		}
	}
	return nil
}

func (s *Server) initialize() error {
	out, err := s.As("", http.MethodPut, "sys/init", map[string]int{"secret_shares": 1, "secret_threshold": 1})
	if err != nil {
		return err
	}
	keys, _ := out["keys_base64"].([]any)
	root, _ := out["root_token"].(string)
	if len(keys) != 1 || root == "" {
		return errors.New("openbao: its initialization gave no key")
	}
	s.key, _ = keys[0].(string)
	s.root = root
	if err := s.unseal(); err != nil {
		return err
	}
	// Each request is noted here, so that tests can count them.
	_, err = s.try(http.MethodPut, "sys/audit/file", map[string]any{"type": "file", "options": map[string]string{"file_path": s.AuditFile()}})
	return err
}

func (s *Server) unseal() error {
	if _, err := s.As("", http.MethodPut, "sys/unseal", map[string]string{"key": s.key}); err != nil {
		return err
	}
	return s.until("is active", func() bool {
		response, err := s.client.Get(s.Address() + "/v1/sys/health")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// find is the program that scripts/fetch put into the cache, or the system's.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if path := filepath.Join(dir, ".cache", "bin", "bao"); executable(path) {
			return path, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	if path, err := exec.LookPath("bao"); err == nil {
		return path, nil
	}
	return "", errors.New("there is no bao; run: scripts/fetch openbao")
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
