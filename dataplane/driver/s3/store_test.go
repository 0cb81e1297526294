package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/dataplane/driver/s3"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/testserver/s3server"
)

// store is what the driver's instances are.
type store interface {
	driver.Instance
	driver.KeyValue
	driver.Scanner
	driver.Lister
	driver.LargeValues
	SweepParts(ctx context.Context, age time.Duration) (int, error)
}

func open(t *testing.T, cfg driver.Config) store {
	t.Helper()
	instance, err := s3.Driver().Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { instance.Close() })
	return instance.(store)
}

func put(id, key, value string) driver.Write {
	return driver.Write{Name: driver.Name{ID: []byte(id), Key: []byte(key)}, Value: []byte(value)}
}

func remove(id, key string) driver.Write {
	w := put(id, key, "")
	w.Op = driver.Delete
	return w
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

// objects lists the bucket, each with its size.
func objects(t *testing.T, s *s3server.Server) map[string]int64 {
	t.Helper()
	out, err := s.Client().ListObjectsV2(t.Context(), &awss3.ListObjectsV2Input{Bucket: aws.String(s3server.Bucket)})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int64{}
	for _, o := range out.Contents {
		all[aws.ToString(o.Key)] = aws.ToInt64(o.Size)
	}
	return all
}

// TestWhatARemovedItemLeaves removes an item, writes it again, and looks into the bucket.
func TestWhatARemovedItemLeaves(t *testing.T) {
	for _, c := range []struct {
		deletes string
		left    int
	}{{"false", 1}, {"true", 0}} {
		t.Run("conditional_delete "+c.deletes, func(t *testing.T) {
			server := s3server.Start(t, s3server.Options{})
			s := open(t, config(server, "conditional_delete", c.deletes, "prefix", "apps/prism"))
			for n := range 3 {
				if done := mustWrite(t, s, "s", put("a", "k", "value")); done.Existed {
					t.Errorf("round %d: it was there", n)
				}
				if done := mustWrite(t, s, "s", remove("a", "k")); !done.Existed {
					t.Errorf("round %d: it was not there", n)
				}
				if done := mustWrite(t, s, "s", remove("a", "k")); done.Existed {
					t.Errorf("round %d: it was there after its removal", n)
				}
			}
			left := objects(t, server)
			for name, size := range left {
				if !strings.HasPrefix(name, "apps/prism/s/") || size > 25 {
					t.Errorf("%s of %d bytes is left", name, size)
				}
			}
			if len(left) != c.left {
				t.Errorf("%d objects are left, want %d", len(left), c.left)
			}
			if items, _, err := s.Scan(t.Context(), "s", driver.Range{ID: []byte("a"), Limit: 10, MaxBytes: 1000}); len(items) > 0 || err != nil {
				t.Errorf("a scan gives %d items, %v", len(items), err)
			}
			if ids, _, err := s.ListIDs(t.Context(), "s", nil, 10); len(ids) > 0 || err != nil {
				t.Errorf("a list gives %q, %v", ids, err)
			}
		})
	}
}

// TestLongKeysAreScannedInOrder has keys of which the names hold only the beginning, and that one beginning is another key.
func TestLongKeysAreScannedInOrder(t *testing.T) {
	s := open(t, config(s3server.Start(t, s3server.Options{})))
	beginning := strings.Repeat("b", 360)
	keys := []string{"a", "b", beginning[:359], beginning, "c"}
	for n := range 20 {
		keys = append(keys, beginning+fmt.Sprintf("%02d", (n*7)%20), strings.Repeat("c", 360)+fmt.Sprint(n), strings.Repeat("d", 1024-n))
	}
	long := strings.Repeat("i", 1024)
	for _, key := range keys {
		mustWrite(t, s, "s", put(long, key, key))
	}
	mustWrite(t, s, "s", remove(long, beginning+"05"))
	slices.Sort(keys)
	keys = slices.DeleteFunc(keys, func(k string) bool { return k == beginning+"05" })
	within := func(start, end string) []string {
		return slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return k < start || end != "" && k >= end })
	}
	for _, c := range []struct{ start, end string }{
		{}, {beginning, ""}, {beginning + "0", ""}, {beginning + "07", beginning + "15"}, {"", beginning + "03"}, {beginning[:359], beginning + "\x00"}, {"d", ""},
	} {
		for _, reverse := range []bool{false, true} {
			want := within(c.start, c.end)
			if reverse {
				slices.Reverse(want)
			}
			r := driver.Range{ID: []byte(long), Start: []byte(c.start), Limit: 7, MaxBytes: 1 << 20, Reverse: reverse}
			if c.end != "" {
				r.End = []byte(c.end)
			}
			var got []string
			for more := true; more; {
				var items []driver.Item
				var err error
				if items, more, err = s.Scan(t.Context(), "s", r); err != nil {
					t.Fatal(err)
				}
				for _, it := range items {
					if string(it.Value) != string(it.Key) || string(it.ID) != long {
						t.Fatalf("the item %q holds %q", it.Key, it.Value)
					}
					got = append(got, string(it.Key))
				}
				if len(items) == 0 {
					break
				}
				if last := items[len(items)-1].Key; reverse {
					r.End = last
				} else {
					r.Start = append(last, 0)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("from %q to %q, reverse %v: got %d keys, want %d", c.start, c.end, reverse, len(got), len(want))
			}
		}
	}
	if ids, _, err := s.ListIDs(t.Context(), "s", nil, 10); err != nil || len(ids) != 1 || string(ids[0]) != long {
		t.Errorf("%d ids, %v", len(ids), err)
	}
}

// TestStoreThatDoesNotKeepConditions has a relay before a bucket that is open to all, which takes conditions out of requests.
func TestStoreThatDoesNotKeepConditions(t *testing.T) {
	server := s3server.Start(t, s3server.Options{Public: true})
	for name, c := range map[string]struct {
		method, header, deletes string
		ok                      bool
	}{
		"all are kept":                    {ok: true, deletes: "true"},
		"creation":                        {method: http.MethodPut, header: "If-None-Match"},
		"replacement":                     {method: http.MethodPut, header: "If-Match"},
		"deletion":                        {method: http.MethodDelete, header: "If-Match", deletes: "true"},
		"deletion, which is not used":     {method: http.MethodDelete, header: "If-Match", ok: true, deletes: "false"},
		"creation and conditional_delete": {method: http.MethodPut, header: "If-None-Match", deletes: "true"},
	} {
		t.Run(name, func(t *testing.T) {
			relay := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "http", Host: server.Addr()})
				if r.In.Method == c.method {
					r.Out.Header.Del(c.header)
				}
			}})
			defer relay.Close()
			cfg := config(server)
			cfg.Endpoints, cfg.Username, cfg.Password = []string{relay.Listener.Addr().String()}, "", secret.Text{}
			if c.deletes != "" {
				cfg.Settings["conditional_delete"] = c.deletes
			}
			s := open(t, cfg)
			space := conformance.NewSpace()
			_, err := s.Write(t.Context(), space, put("a", "k", "v"))
			if c.ok {
				if err != nil {
					t.Errorf("%v (%v)", err, errors.Unwrap(err))
				}
				return
			}
			if err := is(err, fault.FailedPrecondition, fault.Backend, fault.NotApplied); err != nil {
				t.Error(err)
			}
			if it, err := s.Get(t.Context(), space, put("a", "k", "").Name, false); it != nil || err != nil {
				t.Errorf("it was written: %v, %v", it, err)
			}
			for name := range objects(t, server) {
				if strings.Contains(name, "_probe") {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}

func TestRefusalsOfTheServer(t *testing.T) {
	server := s3server.Start(t, s3server.Options{})
	for name, c := range map[string]struct {
		change func(cfg *driver.Config)
		want   string
	}{
		"no such bucket": {func(cfg *driver.Config) { cfg.Settings["bucket"] = "others" }, "no such bucket"},
		"unknown key":    {func(cfg *driver.Config) { cfg.Username = "somebody" }, "credential"},
		"wrong secret":   {func(cfg *driver.Config) { cfg.Password = secret.New("canary-secret") }, "credential"},
		"no key":         {func(cfg *driver.Config) { cfg.Username = "" }, "denies"},
		"another region": {func(cfg *driver.Config) { cfg.Settings["region"] = "eu-central-1" }, "region"},
		"TLS":            {func(cfg *driver.Config) { cfg.Settings["tls"] = "true" }, "takes no connection"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(server)
			c.change(&cfg)
			s := open(t, cfg)
			_, err := s.Write(t.Context(), "s", put("a", "k", "v"))
			reason := fault.BackendDown
			if c.want == "credential" {
				reason = fault.CredentialsUnavailable
			}
			if err := is(err, fault.Unavailable, reason, fault.NotApplied); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q does not say %q", err, c.want)
			}
			for err := err; err != nil; err = errors.Unwrap(err) {
				if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), s3server.Secret) {
					t.Errorf("the secret is in %q", err)
				}
			}
			if ping := s.Ping(t.Context()); ping == nil {
				t.Error("a ping succeeds")
			}
		})
	}
}

// TestObjectsOfOthersAndDamagedOnes puts other things where items are.
func TestObjectsOfOthersAndDamagedOnes(t *testing.T) {
	server := s3server.Start(t, s3server.Options{})
	s := open(t, config(server))
	mustWrite(t, s, "s", put("a", "k", strings.Repeat("v", 100)))
	mustWrite(t, s, "s", put("a", "other", "v"))
	content := map[string][]byte{}
	for name := range objects(t, server) {
		out, err := server.Client().GetObject(t.Context(), &awss3.GetObjectInput{Bucket: aws.String(s3server.Bucket), Key: &name})
		if err != nil {
			t.Fatal(err)
		}
		content[name], _ = io.ReadAll(out.Body)
	}
	var object string
	for name, b := range content {
		if len(b) > 100 {
			object = name
		}
	}
	for name := range content {
		if name == object {
			continue
		}
		flipped := bytes.Clone(content[object])
		flipped[len(flipped)-20] ^= 1
		for what, b := range map[string][]byte{
			"nothing": {}, "a text": []byte("hello"), "another item": content[name], "a bit less": content[object][:len(content[object])-1], "a flipped bit": flipped,
		} {
			in := &awss3.PutObjectInput{Bucket: aws.String(s3server.Bucket), Key: &object, Body: bytes.NewReader(b)}
			if _, err := server.Client().PutObject(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			if it, err := s.Get(t.Context(), "s", put("a", "k", "").Name, false); !fault.Is(err, fault.Checksum) {
				t.Errorf("%s: got %v, %v", what, it, err)
			}
			if v, err := s.ReadValue(t.Context(), "s", put("a", "k", "").Name, 0); err == nil {
				if _, err = io.ReadAll(v); !fault.Is(err, fault.Checksum) {
					t.Errorf("%s: read with %v", what, err)
				}
				v.Close()
			}
			// What is no record of the item is not written over; one whose value is damaged is.
			if _, err := s.Write(t.Context(), "s", put("a", "k", "new")); what != "a flipped bit" && what != "a bit less" && is(err, fault.DataLoss, fault.Checksum, fault.NotApplied) != nil {
				t.Errorf("%s: written over with %v", what, err)
			}
		}
	}
}

// TestUnfinishedValuesAreSwept begins a value as a proxy that dies does.
func TestUnfinishedValuesAreSwept(t *testing.T) {
	server := s3server.Start(t, s3server.Options{})
	s := open(t, config(server, "prefix", "p"))
	begin := &awss3.CreateMultipartUploadInput{Bucket: aws.String(s3server.Bucket), Key: aws.String("p/s/ia/kb-")}
	if _, err := server.Client().CreateMultipartUpload(t.Context(), begin); err != nil {
		t.Fatal(err)
	}
	begin.Key = aws.String("others/x") // of whom the sweeper knows nothing
	if _, err := server.Client().CreateMultipartUpload(t.Context(), begin); err != nil {
		t.Fatal(err)
	}
	if n, err := s.SweepParts(t.Context(), time.Hour); n != 0 || err != nil {
		t.Errorf("swept %d young ones, %v", n, err)
	}
	if n, err := s.SweepParts(t.Context(), -time.Hour); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	left, err := server.Client().ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: aws.String(s3server.Bucket)})
	if err != nil || len(left.Uploads) != 1 {
		t.Errorf("%d are left, %v", len(left.Uploads), err)
	}
	// One that is refused leaves nothing either.
	w := put("a", "b", "")
	w.Condition = driver.IfPresent
	if _, err := s.WriteValue(t.Context(), "s", w, bytes.NewReader(make([]byte, 12<<20))); !fault.Is(err, fault.KeyRequired) {
		t.Errorf("got %v", err)
	}
	if n, err := s.SweepParts(t.Context(), -time.Hour); n != 0 || err != nil {
		t.Errorf("a refused value left %d, %v", n, err)
	}
}

// TestServerThatDoesNotAnswer stops the server's process: no caller waits longer than its time.
func TestServerThatDoesNotAnswer(t *testing.T) {
	server := s3server.Start(t, s3server.Options{})
	s := open(t, config(server))
	mustWrite(t, s, "s", put("a", "before", "v"))
	server.Pause(t)
	defer server.Resume(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	// A write begins with a read, after whose failure nothing was applied.
	if _, err := s.Write(ctx, "s", put("a", "k", "v")); is(err, fault.DeadlineExceeded, fault.Backend, fault.NotApplied) != nil {
		t.Errorf("write: %#v", err)
	}
	if _, err := s.Get(ctx, "s", put("a", "before", "").Name, false); is(err, fault.DeadlineExceeded, fault.Pool, "") != nil {
		t.Errorf("a read whose time was over before it began: %#v", err)
	}
	cfg := config(server)
	cfg.MaxConnections = 1
	narrow := open(t, cfg)
	long, stop := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := narrow.Get(long, "s", put("a", "before", "").Name, false)
		first <- err
	}()
	for { // until the first has the connection
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := narrow.Get(ctx, "s", put("a", "before", "").Name, false)
		cancel()
		if is(err, fault.DeadlineExceeded, fault.Pool, "") == nil {
			break
		}
	}
	stop()
	if err := is(<-first, fault.Cancelled, fault.Client, ""); err != nil {
		t.Error(err)
	}
}

// TestConnectionThatBreaks kills the server under writers: each write ends, and what it says holds.
func TestConnectionThatBreaks(t *testing.T) {
	server := s3server.Start(t, s3server.Options{})
	s := open(t, config(server))
	type result struct {
		key     string
		outcome fault.Outcome
	}
	const writers = 8
	results := make(chan result)
	for writer := range writers {
		go func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d-%d", writer, n)
				_, err := s.Write(context.Background(), "s", put("a", key, "v"))
				if f := fault.From(err); f != nil {
					if f.Code != fault.Unavailable || f.Reason != fault.BackendDown {
						t.Errorf("%s: %#v (%v)", key, f, f.Unwrap())
					}
					results <- result{key, f.Outcome}
					results <- result{}
					return
				}
				results <- result{key, fault.Applied}
			}
		}()
	}
	outcomes := map[string]fault.Outcome{}
	for left := writers; left > 0; {
		r := <-results
		if r.key == "" {
			left--
			continue
		}
		if outcomes[r.key] = r.outcome; len(outcomes) == 50 {
			server.Kill()
		}
	}
	server.Restart(t)
	for key, outcome := range outcomes {
		it, err := s.Get(t.Context(), "s", put("a", key, "").Name, false)
		if err != nil {
			t.Fatalf("%v (%v)", err, errors.Unwrap(err))
		}
		if outcome != fault.OutcomeUnknown && (it != nil) != (outcome == fault.Applied) {
			t.Errorf("%s: outcome %s, item there: %v", key, outcome, it != nil)
		}
	}
}

func TestSettingsThatAreRefused(t *testing.T) {
	for name, c := range map[string]driver.Config{
		"no endpoint":        {},
		"two endpoints":      {Endpoints: []string{"a:1", "b:1"}},
		"no port":            {Endpoints: []string{"a"}},
		"unknown setting":    {Settings: map[string]string{"buckets": "items"}},
		"bucket":             {Settings: map[string]string{"bucket": "Items"}},
		"prefix of nothing":  {Settings: map[string]string{"prefix": "/"}},
		"prefix with a gap":  {Settings: map[string]string{"prefix": "a//b"}},
		"prefix that climbs": {Settings: map[string]string{"prefix": "a/../b"}},
		"region":             {Settings: map[string]string{"region": "a b"}},
		"addressing":         {Settings: map[string]string{"addressing": "dns"}},
		"tls":                {Settings: map[string]string{"tls": "yes"}},
		"conditional_delete": {Settings: map[string]string{"conditional_delete": "yes"}},
		"ca_file and no TLS": {Settings: map[string]string{"ca_file": "ca.pem", "tls": "false"}},
	} {
		if c.Settings != nil {
			c.Endpoints = []string{"127.0.0.1:1"}
		}
		if i, err := s3.Driver().Open(c); err == nil {
			i.Close()
			t.Errorf("%s: taken", name)
		}
	}
}

// TestAnOldTag has a store that reads the tag before it opens the object, as some do, so that others may come between: what
// is read has its own version all the same, and a write on that condition is done.
func TestAnOldTag(t *testing.T) {
	server := s3server.Start(t, s3server.Options{})
	var old atomic.Pointer[string] // the tag to give with the next object
	var last atomic.Pointer[string]
	between := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", server.Addr(), r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			if tag := r.Header.Get("ETag"); r.Request.Method == http.MethodGet && r.StatusCode < 300 {
				if tag := old.Swap(nil); tag != nil {
					r.Header.Set("ETag", *tag)
				}
			} else if tag != "" {
				last.Store(&tag)
			}
			return nil
		},
	}
	front := httptest.NewServer(between)
	t.Cleanup(front.Close)
	cfg := config(server)
	cfg.Endpoints = []string{front.Listener.Addr().String()}
	s := open(t, cfg)
	mustWrite(t, s, "s", put("a", "k", "one"))
	tag := last.Load()
	two := mustWrite(t, s, "s", put("a", "k", "two"))
	old.Store(tag)
	it, err := s.Get(t.Context(), "s", put("a", "k", "").Name, false)
	if err != nil || string(it.Value) != "two" || !bytes.Equal(it.Version, two.Version) {
		t.Fatalf("read %v, %v; want version %x", it, err, two.Version)
	}
	w := put("a", "k", "three")
	w.Condition, w.Version = driver.IfVersion, it.Version
	old.Store(tag)
	mustWrite(t, s, "s", w)
	if old.Load() != nil {
		t.Error("the write did not read what was there")
	}
}
