package nats_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/nats"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/testserver/natsserver"
)

// TestFullStream refuses and keeps what it has.
func TestFullStream(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
	space := conformance.NewSpace()
	mustWrite(t, s, space, put("a", "before", "v"))
	js := raw(t, server)
	stream, err := js.Stream(t.Context(), "prism-kv")
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxBytes = 2000
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	_, err = s.Write(t.Context(), space, put("a", "k", strings.Repeat("v", 4000)))
	if err := is(err, fault.Exhausted, fault.Backend, fault.NotApplied); err != nil {
		t.Error(err)
	}
	if it, err := s.Get(t.Context(), space, put("a", "before", "").Name, false); it == nil || err != nil {
		t.Errorf("got %v, %v", it, err)
	}
	mustWrite(t, s, space, driver.Write{Op: driver.Delete, Name: put("a", "before", "").Name})
}

// TestStreamThatIsMadeAnew is found by instances that knew the one before, and no version of an item is again that of
// another.
func TestStreamThatIsMadeAnew(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	config := driver.Config{Endpoints: []string{server.Addr()}, Settings: map[string]string{"stream": "items_2"}}
	one, other := open(t, config), open(t, config)
	js := raw(t, server)
	seen := map[string]bool{}
	for range 3 {
		for _, s := range []store{one, other} {
			done, err := s.Write(t.Context(), "s", put("a", "k", "v"))
			if fault.Is(err, fault.BackendDown) { // once: it had gone by the stream that is no more
				done, err = s.Write(t.Context(), "s", put("a", "k", "v"))
			}
			if err != nil {
				t.Fatal(err)
			}
			if seen[string(done.Version)] {
				t.Errorf("version %x again", done.Version)
			}
			seen[string(done.Version)] = true
		}
		for _, s := range []store{one, other} {
			if it, err := s.Get(t.Context(), "s", put("a", "k", "").Name, false); err != nil || it == nil || !seen[string(it.Version)] {
				t.Errorf("got %+v, %v", it, err)
			}
		}
		if err := js.DeleteStream(t.Context(), "items_2"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStreamOfOthers is left alone.
func TestStreamOfOthers(t *testing.T) {
	for name, change := range map[string]func(c *jetstream.StreamConfig){
		"several messages for a subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 64 },
		"drops what is old":              func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"forgets":                        func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"other subjects":                 func(c *jetstream.StreamConfig) { c.Subjects = []string{"prism-kv.>", "others.>"} },
		"no expiry":                      func(c *jetstream.StreamConfig) { c.AllowMsgTTL = false },
		"markers":                        func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL = time.Hour },
		"tells of no change":             func(c *jetstream.StreamConfig) { c.RePublish = nil },
	} {
		t.Run(name, func(t *testing.T) {
			server := natsserver.Start(t, natsserver.Options{})
			js := raw(t, server)
			config := jetstream.StreamConfig{
				Name: "prism-kv", Subjects: []string{"prism-kv.*.*.*"}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, AllowMsgTTL: true,
				RePublish: &jetstream.RePublish{Source: "prism-kv.>", Destination: "prism-kv-changes.>"},
			}
			change(&config)
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			s := open(t, driver.Config{Endpoints: []string{server.Addr()}})
			_, err := s.Write(t.Context(), "s", put("a", "k", "v"))
			if err := is(err, fault.FailedPrecondition, fault.Backend, fault.NotApplied); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestStreamMadeByAnOperator is used as it is: reads go by the leader when it does not offer another way.
func TestStreamMadeByAnOperator(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{Config: `authorization { users: [ {user: "a"}, {user: "prism", permissions: { ` + kvRules + ` }} ] }
		no_auth_user: a`})
	if _, err := raw(t, server).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "prism-kv", Subjects: []string{"prism-kv.*.*.*"}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, AllowMsgTTL: true,
		RePublish: &jetstream.RePublish{Source: "prism-kv.>", Destination: "prism-kv-changes.>"}, MaxBytes: 1 << 30,
	}); err != nil {
		t.Fatal(err)
	}
	s := open(t, driver.Config{Endpoints: []string{"127.0.0.1:1", server.Addr()}, Username: "prism"})
	done := mustWrite(t, s, "s", put("a", "k", "v"))
	items, more, err := s.Scan(t.Context(), "s", driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 1000})
	if err != nil || more || len(items) != 1 || !bytes.Equal(items[0].Version, done.Version) {
		t.Errorf("got %+v, %v", items, err)
	}
	if ids, _, err := s.ListIDs(t.Context(), "s", nil, 10); err != nil || len(ids) != 1 {
		t.Errorf("got %q, %v", ids, err)
	}
}

// TestExpiredItemsLeaveTheServer has the server told when to remove an item: after its expiry and a while.
func TestExpiredItemsLeaveTheServer(t *testing.T) {
	server := natsserver.Start(t, natsserver.Options{})
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s := open(t, driver.Config{Endpoints: []string{server.Addr()}, Now: func() time.Time { return now }})
	stream := func() jetstream.Stream {
		st, err := raw(t, server).Stream(t.Context(), "prism-kv")
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	for want, write := range map[string]driver.Write{
		"":     put("a", "forever", "v"),
		"3600": {Name: put("a", "50 minutes", "v").Name, ExpireAt: now.Add(50 * time.Minute)},
		"601":  {Name: put("a", "1 ms", "v").Name, ExpireAt: now.Add(time.Millisecond)},
	} {
		mustWrite(t, s, "s", write)
		m, err := stream().GetMsg(t.Context(), stream().CachedInfo().State.LastSeq)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Header.Get("Nats-TTL"); got != want {
			t.Errorf("%q stays %s s, want %s", write.Key, got, want)
		}
	}
	mustWrite(t, s, "s", driver.Write{Op: driver.Delete, Name: put("a", "forever", "").Name})
	m, err := stream().GetMsg(t.Context(), stream().CachedInfo().State.LastSeq)
	if err != nil || m.Header.Get("Nats-TTL") != "600" || len(m.Data) != 0 {
		t.Errorf("a removal leaves %+v, %v", m, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	at := []string{"127.0.0.1:1"}
	for name, cfg := range map[string]driver.Config{
		"no endpoint":        {},
		"endpoint of a file": {Endpoints: []string{"file"}},
		"one bad of two":     {Endpoints: []string{"127.0.0.1:1", "file"}},
		"unknown setting":    {Endpoints: at, Settings: map[string]string{"bucket": "a"}},
		"name with a dot":    {Endpoints: at, Settings: map[string]string{"stream": "a.b"}},
		"two replicas":       {Endpoints: at, Settings: map[string]string{"replicas": "2"}},
		"odd tls":            {Endpoints: at, Settings: map[string]string{"tls": "yes"}},
		"authorities of no use": {
			Endpoints: at, Settings: map[string]string{"tls": "false", "ca_file": "ca.pem"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := nats.Driver().Open(cfg); err == nil {
				s.Close()
				t.Error("opened")
			}
		})
	}
}
