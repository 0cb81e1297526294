// Package oidcserver runs a real issuer of OpenID Connect, a Dex, for a test, on a free port of the loopback address, and
// ends it with the test.
package oidcserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prism-gateway/prism/shared/testserver/process"
)

// T is the part of testing.TB that a server needs; a bench brings its own.
type T interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
	TempDir() string
}

// Audience is whom tokens are for when Options name nobody.
const Audience = "prism"

// User is a person with an account at the issuer.
type User struct {
	Email  string
	Groups []string
}

// Service is a program with an account at the issuer, which logs in as itself. Its name is none of the audiences.
type Service struct {
	Name   string
	Groups []string
}

// Options say who has an account, and what their tokens are like.
type Options struct {
	Users    []User
	Services []Service
	// Audiences are whom tokens may be for; none: Audience.
	Audiences []string
	// Life is that of a token; zero: an hour.
	Life time.Duration
	// Algorithm is what tokens are signed with: RS256, which is also meant when it is empty, or ES256.
	Algorithm string
}

// Server is a running issuer. It belongs to one test.
type Server struct {
	addr, dir, program string
	options            Options
	client             *http.Client

	process *os.Process
	ended   chan struct{} // closed when the process has ended
}

// Every account has the same password; this is it, and what bcrypt makes of it.
const (
	password = "a user's password"
	hash     = "$2a$10$ZY2.wVTbF9wpJEHlbBE4EOAYDoMH8JMJgFSxnsdmvO2S096Nb.L/K"
	secret   = "a program's secret"
)

// Start runs an issuer until the test ends. It fails the test when there is no dex.
func Start(t T, options Options) *Server {
	t.Helper()
	if len(options.Audiences) == 0 {
		options.Audiences = []string{Audience}
	}
	program, err := find()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{program: program, dir: t.TempDir(), options: options, client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	t.Cleanup(s.Kill)
	for range 5 { // another process may take the port between our looking and the server's
		if err = s.prepare(); err != nil {
			t.Fatal(err)
		}
		if err = s.run(); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// Issuer is what its tokens say that they come from, and the URL to discover it at.
func (s *Server) Issuer() string { return "http://" + s.addr }

// KeysURL is where it publishes its keys.
func (s *Server) KeysURL() string { return s.Issuer() + "/keys" }

// Token logs a user in and returns the id token, for the first audience, or for another one that is named.
func (s *Server) Token(t T, email string, audience ...string) string {
	t.Helper()
	client := append(slices.Clone(audience), s.options.Audiences...)[0]
	return s.token(t, client, url.Values{
		"grant_type": {"password"}, "scope": {"openid email profile groups"}, "username": {email}, "password": {password},
	})
}

// ServiceToken logs a service in as itself and returns the id token, for the first audience, or for another one that is named.
// It is for the service itself too: its list of audiences has two names.
func (s *Server) ServiceToken(t T, name string, audience ...string) string {
	t.Helper()
	client := append(slices.Clone(audience), s.options.Audiences...)[0]
	return s.token(t, name, url.Values{
		"grant_type": {"client_credentials"}, "scope": {"openid profile groups audience:server:client_id:" + client},
	})
}

func (s *Server) token(t T, client string, form url.Values) string {
	t.Helper()
	request, err := http.NewRequest(http.MethodPost, s.Issuer()+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth(url.QueryEscape(client), url.QueryEscape(secret))
	response, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		IDToken string `json:"id_token"`
	}
	if response.StatusCode != http.StatusOK {
		t.Fatal(fmt.Errorf("dex: log in through %s: %s: %s", client, response.Status, text))
	}
	if err := json.Unmarshal(text, &answer); err != nil || answer.IDToken == "" {
		t.Fatal(fmt.Errorf("dex: log in through %s: no id token in its answer: %w", client, err))
	}
	return answer.IDToken
}

// Kill ends the server at once.
func (s *Server) Kill() {
	if s.process != nil {
		s.process.Kill()
		<-s.ended
	}
}

// Restart runs a server that has ended again, as the same issuer. It signs with a new key, and publishes the old one no more.
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

// prepare takes an address and writes the configuration.
func (s *Server) prepare() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.addr = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	var services []string
	var clients, users []map[string]any
	for _, service := range s.options.Services {
		services = append(services, service.Name)
		clients = append(clients, map[string]any{
			"id": service.Name, "name": service.Name, "secret": secret, "clientCredentialsClaims": map[string]any{"groups": service.Groups},
		})
	}
	for _, audience := range s.options.Audiences { // services may ask for tokens for them
		clients = append(clients, map[string]any{"id": audience, "name": audience, "secret": secret, "trustedPeers": services})
	}
	for _, user := range s.options.Users {
		name, _, _ := strings.Cut(user.Email, "@")
		users = append(users, map[string]any{"email": user.Email, "hash": hash, "username": name, "userID": user.Email, "groups": user.Groups})
	}
	life := s.options.Life
	if life == 0 {
		life = time.Hour
	}
	signer := map[string]string{"keysRotationPeriod": "24h"}
	if s.options.Algorithm != "" {
		signer["algorithm"] = s.options.Algorithm
	}
	// JSON is YAML.
	config, err := json.Marshal(map[string]any{
		"issuer": s.Issuer(), "storage": map[string]string{"type": "memory"}, "web": map[string]string{"http": s.addr},
		"signer": map[string]any{"type": "local", "config": signer}, "expiry": map[string]string{"idTokens": life.String()},
		"oauth2":        map[string]any{"passwordConnector": "local", "grantTypes": []string{"password", "client_credentials"}},
		"staticClients": clients, "enablePasswordDB": true, "staticPasswords": users,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(s.config(), config, 0o600)
}

func (s *Server) config() string { return filepath.Join(s.dir, "config.json") }

// run starts the process and waits until it accepts connections.
func (s *Server) run() error {
	cmd := exec.Command(s.program, "serve", s.config())
	cmd.SysProcAttr = dieWithParent()
	out, err := cmd.StderrPipe()
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
		s.Kill()
		return fmt.Errorf("%s on %s ended before it was ready:\n%s", s.program, s.addr, said)
	}
	return s.answers()
}

// untilReady reads the log until the server is about to listen; it returns the log when that never comes.
func untilReady(out io.Reader) string {
	var said strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening on") {
			return ""
		}
		said.WriteString(lines.Text() + "\n")
	}
	return said.String() + "(end of its log)"
}

// answers waits until the server answers. It says that it listens a moment before it does.
func (s *Server) answers() error {
	var err error
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		select {
		case <-s.ended:
			return errors.New("dex ended before it was ready")
		default:
		}
		var response *http.Response
		if response, err = s.client.Get(s.KeysURL()); err == nil {
			response.Body.Close()
			return nil
		}
	}
	return err
}

// find is the program that scripts/fetch put into the cache, or the system's.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		program := filepath.Join(dir, ".cache", "bin", "dex")
		if info, err := os.Stat(program); err == nil && info.Mode()&0o111 != 0 {
			return program, nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		break
	}
	program, err := exec.LookPath("dex")
	if err != nil {
		return "", errors.New("there is no dex in .cache/bin or on PATH; get one with: scripts/fetch dex")
	}
	return program, nil
}
