package nats_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/nats"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

// store is what the driver's instances are.
type store interface {
	driver.Instance
	driver.KeyValue
	driver.Scanner
	driver.Lister
	driver.Counter
	driver.Watcher
	driver.LargeValues
}

func open(t *testing.T, cfg driver.Config) store {
	t.Helper()
	instance, err := nats.Driver().Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { instance.Close() })
	return instance.(store)
}

// raw is a client of the server's own.
func raw(t *testing.T, s *natsserver.Server) jetstream.JetStream {
	t.Helper()
	nc, err := natsgo.Connect("nats://" + s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func put(id, key, value string) driver.Write {
	return driver.Write{Name: driver.Name{ID: []byte(id), Key: []byte(key)}, Value: []byte(value)}
}

func mustWrite(t *testing.T, s store, space driver.Space, w driver.Write) driver.Written {
	t.Helper()
	done, err := s.Write(t.Context(), space, w)
	if err != nil {
		t.Fatalf("write %q: %v (%v)", w.Key, err, errors.Unwrap(err))
	}
	return done
}

func is(err error, code fault.Code, reason fault.Reason, outcome fault.Outcome) error {
	f, ok := errors.AsType[*fault.Fault](err)
	if !ok || f.Code != code || f.Reason != reason || f.Outcome != outcome {
		return fmt.Errorf("got %#v (%v), want code %d, reason %s, outcome %s", err, errors.Unwrap(err), code, reason, outcome)
	}
	return nil
}

// TestServerThatDoesNotAnswer stops the server's process: no caller waits longer than its time, and what was sent has an
// unknown outcome where it is a write and was not only going to be one.
func TestServerThatDoesNotAnswer(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	space := conformance.NewSpace()
	mustWrite(t, s, space, put("a", "before", "v"))
	server.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	// A write begins with a read, after whose failure nothing was applied.
	if _, err := s.Write(ctx, space, put("a", "k", "v")); is(err, fault.DeadlineExceeded, fault.Backend, fault.NotApplied) != nil {
		t.Errorf("write: %#v", err)
	}
	if _, err := s.Get(ctx, space, put("a", "before", "").Name, false); is(err, fault.DeadlineExceeded, fault.Pool, "") != nil {
		t.Errorf("a read whose time was over before it began: %#v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Get(cancelled, space, put("a", "before", "").Name, false)
		done <- err
	}()
	cancel()
	if err := is(<-done, fault.Cancelled, fault.Client, ""); err != nil {
		t.Error(err)
	}
	late := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := late.Write(ctx, space, put("a", "k", "v")); is(err, fault.DeadlineExceeded, fault.Pool, fault.NotApplied) != nil {
		t.Errorf("a write that waits for a connection: %#v", err)
	}
	server.Resume(t)
	if it, err := s.Get(t.Context(), space, put("a", "k", "").Name, false); it != nil || err != nil {
		t.Errorf("what was not applied is there: %v, %v", it, err)
	}
}

// TestConnectionThatBreaks kills the server under writers: each write ends, and what it says holds.
func TestConnectionThatBreaks(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	space := conformance.NewSpace()
	mustWrite(t, s, space, put("a", "before", "v"))
	type result struct {
		key     string
		outcome fault.Outcome
	}
	results, going := make(chan result), make(chan struct{}, 1)
	const writers = 8
	for writer := range writers {
		go func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d-%d", writer, n)
				_, err := s.Write(context.Background(), space, put("a", key, "v"))
				f := fault.From(err)
				if f == nil {
					select {
					case going <- struct{}{}:
					default:
					}
					results <- result{key, fault.Applied}
					continue
				}
				if f.Code != fault.Unavailable || f.Reason != fault.BackendDown {
					t.Errorf("%s: %#v", key, f)
				}
				results <- result{key, f.Outcome}
				results <- result{}
				return
			}
		}()
	}
	outcomes := map[string]fault.Outcome{}
	for left := writers; left > 0; {
		select {
		case <-going:
			if len(outcomes) == 50 {
				server.Kill()
			}
		case r := <-results:
			if r.key == "" {
				left--
				continue
			}
			if outcomes[r.key] = r.outcome; len(outcomes) == 50 {
				server.Kill()
			}
		}
	}
	server.Restart(t)
	for key, outcome := range outcomes {
		it, err := s.Get(t.Context(), space, put("a", key, "").Name, false)
		if err != nil {
			t.Fatal(err)
		}
		if outcome != fault.OutcomeUnknown && (it != nil) != (outcome == fault.Applied) {
			t.Errorf("%s: outcome %s, item there: %v", key, outcome, it != nil)
		}
	}
}

// kvRules are the accesses that the driver needs besides that of making streams.
const kvRules = `publish: { allow: ["prism-kv.>", "prism-kv-parts.>", "$JS.API.STREAM.INFO.*", "$JS.API.DIRECT.GET.>", "$JS.API.STREAM.MSG.GET.*", "$JS.API.CONSUMER.>", "$JS.API.STREAM.PURGE.prism-kv-parts"] }, subscribe: ["_INBOX.>", "prism-kv-changes.>"]`

func TestRefusalsOfTheServer(t *testing.T) {
	const password = "canary-p%40ss\" x"
	down := func(err error) error { return is(err, fault.Unavailable, fault.BackendDown, fault.NotApplied) }
	unknown := func(err error) error {
		return is(err, fault.Unavailable, fault.CredentialsUnavailable, fault.NotApplied)
	}
	fine := func(err error) error { return err }
	users := func(rules string) string {
		return `authorization { users: [ {user: "prism", password: "canary-p%40ss\" x", permissions: { ` + rules + ` }} ] }`
	}
	known := driver.Config{Username: "prism", Password: secret.New(password)}
	for name, c := range map[string]struct {
		server string
		config driver.Config
		value  string
		want   func(err error) error
		reads  bool
	}{
		"no credential":       {server: users(""), want: unknown},
		"wrong password":      {server: users(""), config: driver.Config{Username: "prism", Password: secret.New("canary")}, want: unknown},
		"unknown user":        {server: users(""), config: driver.Config{Username: "nobody", Password: secret.New(password)}, want: unknown},
		"right password":      {server: users(""), config: known, want: fine, reads: true},
		"right token":         {server: `authorization { token: "canary" }`, config: driver.Config{Password: secret.New("canary")}, want: fine, reads: true},
		"wrong token":         {server: `authorization { token: "canary" }`, config: driver.Config{Password: secret.New("canary2")}, want: unknown},
		"may not publish":     {server: users(`publish: { deny: "prism-kv.>" }`), config: known, want: down, reads: true},
		"may not be answered": {server: users(`subscribe: { deny: "_INBOX.>" }`), config: known, want: down},
		"stream is missing and may not be made": {server: users(kvRules), config: known, want: func(err error) error {
			return is(err, fault.FailedPrecondition, fault.Backend, fault.NotApplied)
		}},
		"value that is too large": {
			value: strings.Repeat("v", 1<<20), reads: true,
			want: func(err error) error { return is(err, fault.Invalid, fault.TooLarge, fault.NotApplied) },
		},
		"largest value of the catalogue": {value: strings.Repeat("v", 1000<<10), want: fine, reads: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := natsserver.Start(t, natsserver.Options{Config: c.server})
			c.config.Endpoints = []string{server.Addr()}
			s := open(t, c.config)
			w := put("a", "k", "v")
			if c.value != "" {
				w.Value = []byte(c.value)
				w.Metadata = map[string]string{"m": strings.Repeat("m", 2000)}
			}
			_, err := s.Write(t.Context(), "s", w)
			if err := c.want(err); err != nil {
				t.Errorf("write: %v", err)
			}
			if f := fault.From(err); f != nil {
				if text := fmt.Sprintf("%+v %#v %v", f, f, f.Unwrap()); strings.Contains(text, "canary") {
					t.Errorf("the password is in %s", text)
				}
				if strings.Contains(f.Text, server.Addr()) {
					t.Errorf("the address is in %q", f.Text)
				}
			}
			if _, err := s.Get(t.Context(), "s", w.Name, false); (err == nil) != c.reads {
				t.Errorf("read: %v", err)
			}
		})
	}
}
