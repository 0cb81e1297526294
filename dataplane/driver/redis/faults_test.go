package redis_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/redis"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

// store is what the driver's instances are.
type store interface {
	driver.Instance
	driver.KeyValue
	driver.Scanner
	driver.Lister
}

func open(t *testing.T, cfg driver.Config) store {
	t.Helper()
	instance, err := redis.Driver().Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { instance.Close() })
	return instance.(store)
}

func put(id, key, value string) driver.Write {
	return driver.Write{Name: driver.Name{ID: []byte(id), Key: []byte(key)}, Value: []byte(value)}
}

func mustWrite(t *testing.T, s store, space driver.Space, writes ...driver.Write) {
	t.Helper()
	for _, w := range writes {
		if _, err := s.Write(t.Context(), space, w); err != nil {
			t.Fatalf("write %q: %v (%v)", w.Key, err, errors.Unwrap(err))
		}
	}
}

func is(err error, code fault.Code, reason fault.Reason, outcome fault.Outcome) error {
	f, ok := errors.AsType[*fault.Fault](err)
	if !ok || f.Code != code || f.Reason != reason || f.Outcome != outcome {
		return fmt.Errorf("got %#v, want code %d, reason %s, outcome %s", err, code, reason, outcome)
	}
	return nil
}

// TestServerThatDoesNotAnswer stops the server's process under an instance of one connection: what was sent has an unknown
// outcome, what waits for the connection was not applied, and neither waits longer than its caller.
func TestServerThatDoesNotAnswer(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}, MaxConnections: 1})
	space := conformance.NewSpace()
	mustWrite(t, s, space, put("a", "before", "v"))
	server.Pause(t)

	first := make(chan error, 1)
	go func() {
		_, err := s.Write(context.Background(), space, put("a", "first", "v"))
		first <- err
	}()
	waited, sent := []string{}, 0
	for n := range 5 {
		key := fmt.Sprint("late ", n)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, err := s.Write(ctx, space, put("a", key, "v"))
		cancel()
		switch {
		case is(err, fault.DeadlineExceeded, fault.Pool, fault.NotApplied) == nil:
			waited = append(waited, key)
		case is(err, fault.DeadlineExceeded, fault.Backend, fault.OutcomeUnknown) == nil:
			sent++
		default:
			t.Errorf("%s: %v", key, err)
		}
	}
	if len(waited) == 0 {
		t.Errorf("none waited: %d were sent", sent)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error, 1)
	go func() {
		_, err := s.Get(ctx, space, put("a", "before", "").Name, false)
		cancelled <- err
	}()
	cancel()
	if err := is(<-cancelled, fault.Cancelled, fault.Client, ""); err != nil {
		t.Error(err)
	}

	server.Resume(t)
	if err := <-first; err != nil {
		t.Errorf("the first write: %v", err)
	}
	for _, key := range waited {
		if it, err := s.Get(t.Context(), space, put("a", key, "").Name, false); it != nil || err != nil {
			t.Errorf("%s was not applied, yet it is there: %v, %v", key, it, err)
		}
	}
}

// TestDeadlineOfASentWrite has a write sent by one of several connections to a server that does not answer.
func TestDeadlineOfASentWrite(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	space := conformance.NewSpace()
	mustWrite(t, s, space, put("a", "before", "v"))
	server.Pause(t)
	defer server.Resume(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := s.Write(ctx, space, put("a", "k", "v"))
	if err := is(err, fault.DeadlineExceeded, fault.Backend, fault.OutcomeUnknown); err != nil {
		t.Error(err)
	}
}

// TestConnectionThatBreaks has a peer that takes what is sent and hangs up.
func TestConnectionThatBreaks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1<<16))
			c.Close()
		}
	}()
	s := open(t, driver.Config{Endpoints: []string{l.Addr().String()}})
	_, err = s.Write(t.Context(), "s", put("a", "k", "v"))
	if err := is(err, fault.Unavailable, fault.BackendDown, fault.OutcomeUnknown); err != nil {
		t.Error(err)
	}
	_, err = s.Get(t.Context(), "s", put("a", "k", "").Name, false)
	if err := is(err, fault.Unavailable, fault.BackendDown, ""); err != nil {
		t.Error(err)
	}
}

// SE-13, SE-15
func TestRefusalsOfTheServer(t *testing.T) {
	const password = "canary-p%40ss\" x"
	for name, c := range map[string]struct {
		args   []string
		config driver.Config
		write  driver.Write
		want   func(err error) error
		reads  bool
	}{
		"no password": {
			args: []string{"--requirepass", password}, write: put("a", "k", "v"),
			want: func(err error) error {
				return is(err, fault.Unavailable, fault.CredentialsUnavailable, fault.NotApplied)
			},
		},
		"wrong password": {
			args: []string{"--requirepass", "another"}, config: driver.Config{Password: secret.New(password)}, write: put("a", "k", "v"),
			want: func(err error) error {
				return is(err, fault.Unavailable, fault.CredentialsUnavailable, fault.NotApplied)
			},
		},
		"unknown user": {
			config: driver.Config{Username: "nobody", Password: secret.New(password)}, write: put("a", "k", "v"),
			want: func(err error) error {
				return is(err, fault.Unavailable, fault.CredentialsUnavailable, fault.NotApplied)
			},
		},
		"user without rights": {
			args: []string{"--user", "limited", "on", "nopass", "~*", "+@connection"}, config: driver.Config{Username: "limited", Password: secret.New(password)},
			write: put("a", "k", "v"),
			want:  func(err error) error { return is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied) },
		},
		"right password": {
			args: []string{"--requirepass", password}, config: driver.Config{Password: secret.New(password)}, write: put("a", "k", "v"),
			want: func(err error) error { return err }, reads: true,
		},
		"full memory": {
			args: []string{"--maxmemory", "1"}, write: put("a", "k", "v"),
			want: func(err error) error { return is(err, fault.Exhausted, fault.Backend, fault.NotApplied) }, reads: true,
		},
		"replica": {
			args: []string{"--replicaof", "127.0.0.1 1"}, write: put("a", "k", "v"),
			want: func(err error) error { return is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied) }, reads: true,
		},
		"replica without data": {
			args: []string{"--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no"}, write: put("a", "k", "v"),
			want: func(err error) error { return is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := redisserver.Start(t, redisserver.Options{Args: c.args})
			c.config.Endpoints = []string{server.Addr()}
			s := open(t, c.config)
			_, err := s.Write(t.Context(), "s", c.write)
			if err := c.want(err); err != nil {
				t.Errorf("write: %v", err)
			}
			if f := fault.From(err); f != nil {
				if text := fmt.Sprintf("%+v %#v %v", f, f, f.Unwrap()); strings.Contains(text, "canary") || strings.Contains(text, "limited") {
					t.Errorf("the password or the user is in %s", text)
				}
				if strings.Contains(f.Text, server.Addr()) {
					t.Errorf("the address is in %q", f.Text)
				}
			}
			if _, err := s.Get(t.Context(), "s", c.write.Name, false); (err == nil) != c.reads {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// TestForgottenScripts has the server lose its scripts between calls.
func TestForgottenScripts(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	s, raw := open(t, driver.Config{Endpoints: []string{server.Addr()}}), client(t, server)
	space := conformance.NewSpace()
	for n := range 3 {
		raw.ScriptFlush(t.Context())
		for k, r := range s.BatchWrite(t.Context(), space, []driver.Write{put("a", "1", "v"), put("b", "2", "v"), put("c", "3", "v")}) {
			if r.Err != nil || r.Existed != (n > 0) {
				t.Errorf("round %d, entry %d: %+v", n, k, r)
			}
		}
		raw.ScriptFlush(t.Context())
		items, _, err := s.Scan(t.Context(), space, driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 1 << 20})
		if err != nil || len(items) != 1 {
			t.Errorf("scan: %v, %v", items, err)
		}
	}
}

// TestFewConnections has 10 callers share 1 and 3 connections (LF-17).
func TestFewConnections(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{})
	raw := client(t, server)
	for _, connections := range []int{1, 3} {
		s := open(t, driver.Config{Endpoints: []string{server.Addr()}, MaxConnections: connections})
		space := conformance.NewSpace()
		var wait sync.WaitGroup
		for caller := range 10 {
			wait.Go(func() {
				for n := range 50 {
					w := put(fmt.Sprint(caller), fmt.Sprint(n), "v")
					if _, err := s.Write(t.Context(), space, w); err != nil {
						t.Errorf("write: %v", err)
					}
					if it, err := s.Get(t.Context(), space, w.Name, false); it == nil || err != nil {
						t.Errorf("get: %v, %v", it, err)
					}
				}
			})
		}
		wait.Wait()
		list := raw.ClientList(t.Context()).Val()
		if n := strings.Count(list, "\n") - 1; n > connections {
			t.Errorf("%d connections, want at most %d:\n%s", n, connections, list)
		}
		s.Close()
	}
}

// TestRefusedConnectionFailsEachCommand has many commands wait for a connection that the server refuses: none may be taken
// for answered.
func TestRefusedConnectionFailsEachCommand(t *testing.T) {
	server := redisserver.Start(t, redisserver.Options{Args: []string{"--requirepass", "right"}})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}, Password: secret.New("wrong"), MaxConnections: 1})
	names, writes := make([]driver.Name, 100), make([]driver.Write, 100)
	for n := range names {
		writes[n] = put("a", fmt.Sprint(n), "v")
		names[n] = writes[n].Name
	}
	for n, r := range s.BatchGet(t.Context(), "s", names, false) {
		if err := is(r.Err, fault.Unavailable, fault.CredentialsUnavailable, ""); err != nil {
			t.Fatalf("read %d: item %v, %v", n, r.Item, err)
		}
	}
	for n, r := range s.BatchWrite(t.Context(), "s", writes) {
		if err := is(r.Err, fault.Unavailable, fault.CredentialsUnavailable, fault.NotApplied); err != nil {
			t.Fatalf("write %d: %v", n, err)
		}
	}
}

// TestPeerThatIsNoRedis answers whatever it is asked with something else.
func TestPeerThatIsNoRedis(t *testing.T) {
	for name, says := range map[string]string{
		"a string longer than any":   "$9223372036854775807\r\n",
		"a list longer than any":     "*9223372036854775807\r\n",
		"a negative length":          "$-7\r\n",
		"another protocol":           "HTTP/1.1 400 Bad Request\r\n\r\n",
		"a number":                   ":1\r\n",
		"a list of something else":   "*4\r\n$1\r\nx\r\n:1\r\n:1\r\n:1\r\n",
		"a write that it cannot say": "*4\r\n:0\r\n$0\r\n\r\n$1\r\n0\r\n$0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, driver.Config{Endpoints: []string{liar(t, says)}})
			if it, err := s.Get(t.Context(), "s", put("a", "k", "").Name, false); err == nil {
				t.Errorf("read %v", it)
			}
			if _, err := s.Write(t.Context(), "s", put("a", "k", "v")); err == nil || fault.From(err).Outcome != fault.OutcomeUnknown {
				t.Errorf("write: %#v", err)
			}
			if items, _, err := s.Scan(t.Context(), "s", driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 1 << 20}); err == nil && len(items) > 0 {
				t.Errorf("scan: %v", items)
			}
		})
	}
}

// liar refuses the SDK's greeting, then answers each read of a connection with the same bytes. It returns its address.
func liar(t *testing.T, says string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buffer := make([]byte, 1<<16)
				for say := "-ERR unknown command\r\n"; ; say = says {
					if _, err := c.Read(buffer); err != nil {
						return
					}
					if _, err := c.Write([]byte(say)); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}
