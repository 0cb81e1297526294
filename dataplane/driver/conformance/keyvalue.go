package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

func shuffle(cases []Case) {
	mathrand.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
}

func keyValueCases() []Case {
	return in("keyvalue",
		Case{ID: "KV-01", Name: "open_twice_and_close_twice", Run: func(t *testing.T, e *Env) {
			other := e.open()
			e.must(put("a", "k", "v"))
			for range 2 {
				if err := other.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
			e.holds("a", "k", "v")
			_, err := other.(driver.KeyValue).Write(t.Context(), e.Space, put("a", "k", "w"))
			if f := fault.From(err); f == nil || f.Code != fault.Unavailable || f.Outcome != fault.NotApplied {
				t.Errorf("write to a closed instance: %s", show(err))
			}
			e.holds("a", "k", "v")
		}},
		Case{ID: "KV-01", Name: "unknown_setting_refused", Run: func(t *testing.T, e *Env) {
			cfg := e.backend.Config
			cfg.Settings = maps.Clone(cfg.Settings)
			if cfg.Settings == nil {
				cfg.Settings = map[string]string{}
			}
			cfg.Settings["databse"] = "1"
			if inst, err := e.backend.Driver.Open(cfg); err == nil {
				inst.Close()
				t.Error("a setting that does not exist was accepted")
			} else if !strings.Contains(err.Error(), "databse") {
				t.Errorf("%v: want the setting named", err)
			}
		}},
		Case{ID: "KV-02", Name: "ping", Run: func(t *testing.T, e *Env) {
			if err := e.inst.Ping(t.Context()); err != nil {
				t.Error(show(err))
			}
		}},
		Case{ID: "KV-03", Name: "put_get_types", Run: func(t *testing.T, e *Env) {
			text, _ := json.Marshal(map[string]any{"a": []int{1, 2}, "b": "ü"})
			for n, value := range []string{"42", "true", string(text), "Grüße, 世界", "a\x00b\xff\xfe", "\x08\x96\x01\x12\x07testing"} {
				key := fmt.Sprint(n)
				e.must(put("types", key, value))
				e.holds("types", key, value)
			}
		}},
		Case{ID: "KV-04", Name: "empty_value_is_present", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "k", ""))
			if it := e.holds("a", "k", ""); len(it.Version) == 0 {
				t.Error("no version")
			}
			e.must(driver.Write{Op: driver.Put, Name: name("a", "nil")})
			e.holds("a", "nil", "")
		}},
		Case{ID: "KV-05", Name: "get_absent_is_ok_without_item", Run: func(t *testing.T, e *Env) {
			e.holds("a", "k", nil)
			e.must(put("a", "k", "v"))
			e.holds("a", "", nil)
			e.holds("a", "k2", nil)
			e.holds("ak", "", nil)
		}},
		Case{ID: "KV-06", Name: "overwrite", Run: func(t *testing.T, e *Env) {
			first := e.must(put("a", "k", "one"))
			second := e.must(put("a", "k", "two"))
			if first.Existed || !second.Existed {
				t.Errorf("existed %v and %v, want false and true", first.Existed, second.Existed)
			}
			e.holds("a", "k", "two")
		}},
		Case{ID: "KV-07", Name: "delete_existing", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "k", "v"))
			e.must(put("a", "k2", "v2"))
			if done := e.must(remove("a", "k")); !done.Existed || done.Version != nil {
				t.Errorf("got %+v, want existed and no version", done)
			}
			e.holds("a", "k2", "v2")
		}},
		Case{ID: "KV-08", Name: "delete_absent_is_ok", Run: func(t *testing.T, e *Env) {
			if done := e.must(remove("a", "k")); done.Existed {
				t.Error("an absent item existed")
			}
		}},
		Case{ID: "KV-09", Name: "delete_then_get", Run: func(t *testing.T, e *Env) {
			for range 3 {
				e.must(put("a", "k", "v"))
				e.must(remove("a", "k"))
				e.holds("a", "k", nil)
			}
		}},
		Case{ID: "KV-10", Name: "id_1_byte", Run: func(t *testing.T, e *Env) {
			for b := range 256 {
				e.must(put(string([]byte{byte(b)}), "", fmt.Sprint(b)))
			}
			for b := range 256 {
				e.holds(string([]byte{byte(b)}), "", fmt.Sprint(b))
			}
		}},
		Case{ID: "KV-11", Name: "id_and_key_1024_bytes", Run: func(t *testing.T, e *Env) {
			long := strings.Repeat("\x00\xff", 512)
			e.must(put(long, long, "v"))
			it := e.holds(long, long, "v")
			if string(it.ID) != long || string(it.Key) != long {
				t.Error("the name is not what was written")
			}
			e.holds(long, long[:1023], nil)
			e.holds(long[:1023], long, nil)
		}},
		Case{ID: "KV-14", Name: "key_every_byte_value", Run: func(t *testing.T, e *Env) {
			for b := range 256 {
				e.must(put("a", string([]byte{'k', byte(b)}), fmt.Sprint(b)))
			}
			for b := range 256 {
				e.holds("a", string([]byte{'k', byte(b)}), fmt.Sprint(b))
			}
		}},
		Case{ID: "KV-15", Name: "key_unicode_normalisation_is_not_applied", Run: func(t *testing.T, e *Env) {
			e.must(put("a", "caf\u00e9", "composed"))
			e.must(put("a", "cafe\u0301", "decomposed"))
			e.must(put("a", "CAF\u00c9", "upper"))
			e.holds("a", "caf\u00e9", "composed")
			e.holds("a", "cafe\u0301", "decomposed")
		}},
		Case{ID: "KV-16", Name: "names_with_separators_and_wildcards", Run: func(t *testing.T, e *Env) {
			odd := []string{"||", ":", "/", "*", "?", "[", "]", "%", "_", `\`, "..", "{", "}", "{}", "{a}", "}{", "'", `"`, ";", " ", "\r\n", "$1", "\x00", "-", "+", "(", "\xff"}
			for _, id := range odd {
				for _, key := range odd {
					e.must(put(id, key, id+" "+key))
				}
			}
			for _, id := range odd {
				for _, key := range odd {
					e.holds(id, key, id+" "+key)
				}
			}
			e.must(remove("*", "*"))
			e.holds("*", "?", "* ?")
			e.holds("*", "*", nil)
		}},
		Case{ID: "KV-17", Name: "value_of_1_MiB", Run: func(t *testing.T, e *Env) {
			value := strings.Repeat("0123456789abcde\n", 1<<16)
			e.must(put("a", "k", value))
			if it := e.get("a", "k"); it == nil || string(it.Value) != value {
				t.Error("the value is not what was written")
			}
		}},
		Case{ID: "KV-19", Name: "metadata_roundtrip", Run: func(t *testing.T, e *Env) {
			w := put("a", "k", "v")
			w.Metadata = map[string]string{"": "empty name", "x-y": "", "ü": "\u00e9 \x00 \n", "long": strings.Repeat("m", 1900)}
			e.must(w)
			if it := e.holds("a", "k", "v"); !maps.Equal(it.Metadata, w.Metadata) {
				t.Errorf("got %q", it.Metadata)
			}
			e.must(put("a", "k", "v"))
			if it := e.get("a", "k"); len(it.Metadata) != 0 {
				t.Errorf("metadata of the item before: %q", it.Metadata)
			}
		}},
		Case{ID: "KV-20", Name: "content_type_roundtrip", Run: func(t *testing.T, e *Env) {
			w := put("a", "k", "{}")
			w.ContentType = "application/json; charset=utf-8"
			e.must(w)
			if it := e.holds("a", "k", "{}"); it.ContentType != w.ContentType {
				t.Errorf("got %q", it.ContentType)
			}
		}},
		Case{ID: "KV-21", Name: "modified_at_monotone_per_key", Run: func(t *testing.T, e *Env) {
			var last time.Time
			for n, step := range []time.Duration{0, time.Second, -time.Hour, time.Second, 2 * time.Hour} {
				e.Clock.Move(step)
				e.must(put("a", "k", fmt.Sprint(n)))
				it := e.get("a", "k")
				if it.ModifiedAt.Before(last) {
					t.Errorf("step %d: modified at %v, before that at %v", n, it.ModifiedAt, last)
				}
				if n != 2 && n != 3 && e.Clock.Now().Sub(it.ModifiedAt).Abs() > time.Millisecond {
					t.Errorf("step %d: modified at %v, the clock says %v", n, it.ModifiedAt, e.Clock.Now())
				}
				last = it.ModifiedAt
			}
		}},
		Case{ID: "KV-22", Name: "read_own_write", Run: func(t *testing.T, e *Env) {
			for n := range 200 {
				e.must(put("a", "k", fmt.Sprint(n)))
				e.holds("a", "k", fmt.Sprint(n))
			}
		}},
		Case{ID: "KV-23", Name: "read_write_of_another_proxy", Needs: shared, Run: func(t *testing.T, e *Env) {
			for n := range 200 {
				e.must(put("a", "k", fmt.Sprint(n)))
			}
			e.KeyValue = e.open().(driver.KeyValue)
			e.holds("a", "k", "199")
		}},
		Case{ID: "KV-25", Name: "return_previous", Run: returnPrevious},
		Case{ID: "KV-26", Name: "head_only", Run: func(t *testing.T, e *Env) {
			w := e.untilIfAble(put("a", "k", strings.Repeat("v", 10_000)), e.Clock.Now().Add(time.Hour))
			w.ContentType, w.Metadata = "text/plain", map[string]string{"m": strings.Repeat("x", 5000)}
			done := e.must(w)
			it, err := e.Get(t.Context(), e.Space, w.Name, true)
			if err != nil || it == nil {
				t.Fatalf("got %v, %s", it, show(err))
			}
			if len(it.Value) != 0 || !bytes.Equal(it.Version, done.Version) || !it.ExpireAt.Equal(done.ExpireAt) ||
				it.ContentType != w.ContentType || !maps.Equal(it.Metadata, w.Metadata) || it.ModifiedAt.IsZero() {
				t.Errorf("got %+v", it)
			}
			if it, err := e.Get(t.Context(), e.Space, name("a", "absent"), true); it != nil || err != nil {
				t.Errorf("absent: %v, %v", it, err)
			}
		}},
		Case{ID: "KV-27", Name: "items_belong_to_the_caller", Run: func(t *testing.T, e *Env) {
			w := put("a", "k", "value")
			w.Metadata = map[string]string{"m": "x"}
			e.must(w)
			scribble := func(b []byte) {
				for n := range b {
					b[n] = '#'
				}
			}
			scribble(w.Value)
			w.Metadata["m"] = "#"
			it := e.get("a", "k")
			scribble(it.Value)
			scribble(it.Version)
			scribble(it.Key)
			it.Metadata["m"] = "#"
			again := e.holds("a", "k", "value")
			if string(again.Key) != "k" || again.Metadata["m"] != "x" || bytes.Equal(again.Version, it.Version) {
				t.Errorf("what a caller did to its copy is in the store: %+v", again)
			}
		}},
		Case{ID: "KV-27", Name: "concurrent_writers_linearizable", Run: linearizable},
		Case{ID: "KV-28", Name: "cancel_before_send_not_applied", Run: func(t *testing.T, e *Env) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			done, err := e.Write(ctx, e.Space, put("a", "k", "v"))
			e.isFault(done, err, fault.Cancelled, fault.Client, fault.NotApplied)
			if _, err := e.Get(ctx, e.Space, name("a", "k"), false); fault.From(err) == nil || fault.From(err).Code != fault.Cancelled {
				t.Errorf("get: %s", show(err))
			}
			e.holds("a", "k", nil)
		}},
		Case{ID: "KV-30", Name: "deadline_past_not_applied", Run: func(t *testing.T, e *Env) {
			ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
			defer cancel()
			done, err := e.Write(ctx, e.Space, put("a", "k", "v"))
			f, _ := err.(*fault.Fault)
			if f == nil || f.Code != fault.DeadlineExceeded || f.Outcome != fault.NotApplied {
				t.Fatalf("got %+v, %s", done, show(err))
			}
			e.holds("a", "k", nil)
		}},
		Case{ID: "SE-05", Name: "spaces_are_apart", Run: spacesAreApart},
		Case{ID: "SE-14", Name: "sql_injection_in_keys_read_write_delete", Run: namesAreNoCommands},
	)
}

// namesAreNoCommands uses names that would be a command's end and another's beginning, if anybody put them into one as text.
func namesAreNoCommands(t *testing.T, e *Env) {
	names := []string{
		"'; DROP TABLE prism.item; --", "' OR '1'='1", `"; DELETE FROM item; --`, "x'); DELETE FROM item WHERE ('1'='1", "$1", "$$; SELECT pg_sleep(9); $$", `\'; --`,
		"%' UNION SELECT value FROM item --", "a\r\nFLUSHALL\r\n", "*1\r\n$8\r\nFLUSHALL\r\n", "\"); redis.call('FLUSHALL') --", "> a.*", "../../a", "%2e%2e%2fa", "a?delete", "a;b",
	}
	e.must(put("bystander", "k", "there"))
	for _, id := range names {
		for _, key := range names {
			e.must(put(id, key, id+key))
		}
	}
	for _, id := range names {
		for _, key := range names {
			e.holds(id, key, id+key)
		}
		for _, key := range names[1:] {
			e.must(remove(id, key))
			e.holds(id, key, nil)
		}
		e.holds(id, names[0], id+names[0])
	}
	e.holds("bystander", "k", "there")
}

// in says which interface cases belong to.
func in(name string, cases ...Case) []Case {
	for n := range cases {
		cases[n].Interface = name
	}
	return cases
}

func returnPrevious(t *testing.T, e *Env) {
	w := e.untilIfAble(put("a", "k", "one"), e.Clock.Now().Add(time.Hour))
	w.Previous, w.ContentType, w.Metadata = true, "text/plain", map[string]string{"m": "1"}
	first := e.must(w)
	if first.Previous != nil {
		t.Errorf("the first write had a previous item: %+v", first.Previous)
	}
	second := put("a", "k", "two")
	second.Previous = true
	done := e.must(second)
	p := done.Previous
	if p == nil || string(p.Value) != "one" || !bytes.Equal(p.Version, first.Version) || !p.ExpireAt.Equal(first.ExpireAt) ||
		p.ContentType != "text/plain" || p.Metadata["m"] != "1" || string(p.ID) != "a" || string(p.Key) != "k" {
		t.Errorf("previous of a put: %+v", p)
	}
	last := remove("a", "k")
	last.Previous = true
	if p := e.must(last).Previous; p == nil || string(p.Value) != "two" || !bytes.Equal(p.Version, done.Version) || !p.ExpireAt.IsZero() {
		t.Errorf("previous of a delete: %+v", p)
	}
	if p := e.must(last).Previous; p != nil {
		t.Errorf("previous of a deleted item: %+v", p)
	}
}

// spacesAreApart writes under names that run into each other when they are joined without care.
func spacesAreApart(t *testing.T, e *Env) {
	base := string(e.Space)
	spaces := []driver.Space{e.Space, driver.Space(base + "0"), driver.Space(base[:len(base)-1]), driver.Space(base + ".1"), driver.Space("x" + base)}
	ids := []string{"a", "0a", ".1a", "1a", "0", "\x00a", "{a}", "*", base, "/a", ":a"}
	keys := []string{"", "a", "0", "*", "\x00", "{a}"}
	value := func(s driver.Space, id, key string) string { return fmt.Sprintf("%q %q %q", s, id, key) }
	each := func(f func(s driver.Space, id, key string)) {
		for _, s := range spaces {
			for _, id := range ids {
				for _, key := range keys {
					f(s, id, key)
				}
			}
		}
	}
	each(func(s driver.Space, id, key string) {
		if done, err := e.Write(t.Context(), s, onlyIf(put(id, key, value(s, id, key)), driver.IfAbsent, nil)); err != nil {
			t.Fatalf("%s is another's: %+v, %s", value(s, id, key), done, show(err))
		}
	})
	each(func(s driver.Space, id, key string) {
		it, err := e.Get(t.Context(), s, name(id, key), false)
		if err != nil || it == nil || string(it.Value) != value(s, id, key) {
			t.Fatalf("%s holds %+v, %v", value(s, id, key), it, err)
		}
	})
	if sc, ok := e.inst.(driver.Scanner); ok {
		items, more, err := sc.Scan(t.Context(), e.Space, driver.Range{ID: []byte("a"), Limit: 100, MaxBytes: 1 << 20})
		if err != nil || more || len(items) != len(keys) {
			t.Errorf("scan of one id: %d items, more %v, %v; want %d", len(items), more, err, len(keys))
		}
	}
	if ls, ok := e.inst.(driver.Lister); ok {
		for _, s := range spaces {
			if got := len(listAll(t, ls, s, 3)); got != len(ids) {
				t.Errorf("space %q lists %d ids, want %d", s, got, len(ids))
			}
		}
	}
	each(func(s driver.Space, id, key string) {
		if _, err := e.Write(t.Context(), s, remove(id, key)); err != nil {
			t.Fatal(show(err))
		}
	})
}
