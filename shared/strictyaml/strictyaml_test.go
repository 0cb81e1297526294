package strictyaml_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

const whole = `# what a team writes
namespace: user-profiles
team: accounts
pattern: keyvalue
needs: {durability: strong, consistency: read-your-writes, read_rps: 5000, ttl: 24h, interfaces: [keyvalue.scan]}
access:
  owners: [{team: accounts}]
  readers:
  - group: analytics
policies: {audit: AUDIT_POLICY_STRICT, pii: true}
limits: {defaultDeadline: 1.5s, max_deadline: 1d}
`

func wholeRequest() *configv1.NamespaceRequest {
	return &configv1.NamespaceRequest{
		Namespace: "user-profiles", Team: "accounts", Pattern: "keyvalue",
		Needs: &configv1.Needs{
			Durability: configv1.Durability_DURABILITY_STRONG, Consistency: configv1.Consistency_CONSISTENCY_READ_YOUR_WRITES,
			ReadRps: 5000, Ttl: durationpb.New(24 * time.Hour), Interfaces: []string{"keyvalue.scan"},
		},
		Access: &configv1.Access{
			Owners:  []*configv1.Principal{{Who: &configv1.Principal_Team{Team: "accounts"}}},
			Readers: []*configv1.Principal{{Who: &configv1.Principal_Group{Group: "analytics"}}},
		},
		Policies: &configv1.Policies{Audit: configv1.AuditPolicy_AUDIT_POLICY_STRICT, Pii: true},
		Limits:   &configv1.Limits{DefaultDeadline: durationpb.New(1500 * time.Millisecond), MaxDeadline: durationpb.New(24 * time.Hour)},
	}
}

func TestDecodesWhatPeopleWrite(t *testing.T) {
	docs, err := strictyaml.Parse("a.yaml", []byte(whole))
	if err != nil || len(docs) != 1 {
		t.Fatalf("got %d documents, %v", len(docs), err)
	}
	var got configv1.NamespaceRequest
	if err := docs[0].Decode(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wholeRequest(), &got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for field, want := range map[string]int{
		"namespace": 2, "needs.ttl": 5, "access.readers[0].group": 9, "access.readers[0]": 9, "access.writers": 6,
		"needs.interfaces[0]": 5, "needs.retention": 5, "auth": 2, "": 2,
	} {
		if line, ok := docs[0].Position(field); !ok || line != want {
			t.Errorf("%q is on line %d (%v), want %d", field, line, ok, want)
		}
	}
}

func TestDecodesWhatProtojsonWrites(t *testing.T) {
	data, err := protojson.Marshal(wholeRequest())
	if err != nil {
		t.Fatal(err)
	}
	var got configv1.NamespaceRequest
	decode(t, string(data), func(d *strictyaml.Document) error { return d.Decode(&got) })
	if diff := cmp.Diff(wholeRequest(), &got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}

	snapshot := &adminv1.Snapshot{Version: 1 << 60, RecordedAt: &timestamppb.Timestamp{Seconds: 1700000000, Nanos: 5}}
	if data, err = protojson.Marshal(snapshot); err != nil {
		t.Fatal(err)
	}
	var back adminv1.Snapshot
	decode(t, string(data), func(d *strictyaml.Document) error { return d.Decode(&back) })
	if diff := cmp.Diff(snapshot, &back, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func decode(t *testing.T, text string, into func(*strictyaml.Document) error) {
	t.Helper()
	docs, err := strictyaml.Parse("a.yaml", []byte(text))
	if err != nil || len(docs) != 1 {
		t.Fatalf("got %d documents, %v", len(docs), err)
	}
	if err := into(docs[0]); err != nil {
		t.Fatal(err)
	}
}

func TestDocumentsKeepTheirLines(t *testing.T) {
	docs, err := strictyaml.Parse("a.yaml", []byte("# nothing yet\n---\nnamespace: one-a\n---\n---\nnamespace: two-b\nteam: x\n"))
	if err != nil || len(docs) != 2 {
		t.Fatalf("got %d documents, %v", len(docs), err)
	}
	var second configv1.NamespaceRequest
	if err := docs[1].Decode(&second); err != nil {
		t.Fatal(err)
	}
	if line, _ := docs[1].Position("team"); line != 7 || second.GetNamespace() != "two-b" {
		t.Errorf("team of %s is on line %d, want 7", second.GetNamespace(), line)
	}
}

func TestRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"an unknown field":           {"namespace: abc\nneeds:\n  write_rsp: 5", `a.yaml:3: needs: unknown field "write_rsp"; did you mean "write_rps"?`},
		"a field far from any":       {"zzzzzzzz: 1", `a.yaml:1: unknown field "zzzzzzzz"; want one of access, auth, deployment, `},
		"a repeated key":             {"namespace: abc\nteam: x\nnamespace: abd", `a.yaml:3: key "namespace" is there twice, first on line 1`},
		"both names of one field":    {"limits: {default_deadline: 1s, defaultDeadline: 1s}", `a.yaml:1: limits.default_deadline: the field is there twice`},
		"an anchor":                  {"needs: &n {read_rps: 1}", "a.yaml:1: anchor &n: write the value out"},
		"an alias":                   {"team: &a x\nnamespace: *a", "a.yaml:2: alias *a"},
		"a tag":                      {"team: !!binary aGk=", "a.yaml:1: tag !!binary"},
		"a number without unit":      {"needs: {ttl: 24}", `a.yaml:1: needs.ttl: "24": want a duration`},
		"a wrong unit":               {"needs:\n  ttl: 24 hours", `a.yaml:2: needs.ttl: "24 hours": want a duration`},
		"a mapping for a duration":   {"needs: {ttl: {seconds: 1}}", `needs.ttl: a mapping: want a duration`},
		"text for a number":          {"needs: {read_rps: many}", `needs.read_rps: "many": want a whole number from 0 to 4294967295`},
		"a negative number":          {"needs: {read_rps: -1}", `needs.read_rps: "-1": want a whole number from 0`},
		"a number that is too large": {"needs: {read_rps: 4294967296}", `needs.read_rps: "4294967296": want a whole number`},
		"a fraction":                 {"needs: {read_rps: 1.5}", `needs.read_rps: "1.5": want a whole number`},
		"a quoted number":            {`needs: {read_rps: "5"}`, `needs.read_rps: "5": want a whole number`},
		"yes for true":               {"policies: {pii: yes}", `policies.pii: "yes": want true or false`},
		"true for text":              {"team: true", `team: "true": want text (quote true and false)`},
		"an unknown enum value":      {"needs: {durability: hard}", `needs.durability: "hard": want one of none, relaxed, strong`},
		"an enum's number":           {"needs: {durability: 3}", `needs.durability: "3": want one of none, relaxed, strong`},
		"an enum value in capitals":  {"needs: {durability: STRONG}", `needs.durability: "STRONG": want one of`},
		"unspecified":                {"needs: {durability: unspecified}", `needs.durability: "unspecified": want one of`},
		"an empty value":             {"namespace: abc\nneeds:\nteam: x", "a.yaml:2: needs: has no value"},
		"an empty element":           {"patterns:\n- \n- {name: a}", "patterns[0]: has no value"},
		"a mapping for a list":       {"patterns: {name: a}", "patterns: want a list, not a mapping"},
		"a list for a mapping":       {"needs: [a]", "needs: want a mapping of field names to values, not a list"},
		"a list for text":            {"team: [a]", "team: want text (quote true and false), not a list"},
		"two of a oneof":             {"access: {owners: [{team: a, group: b}]}", "access.owners[0].group: only one of team and group can be set"},
		"text for the whole":         {"just words", "a.yaml:1: want a mapping of field names to values, not text"},
		"broken syntax":              {"namespace: abc\n  team: x", "a.yaml:2: this is not YAML"},
		"a mapping as key":           {"{a: b}: c", "a key must be text, not a mapping"},
		"a broken second document":   {"namespace: abc\n---\n: :\n  - [", "this is not YAML"},
		"a deep nest":                {strings.Repeat("[", 70) + strings.Repeat("]", 70), "nested more than 64 levels deep"},
		"a large file":               {strings.Repeat("#", 16<<20+1), "the file has 16777217 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			docs, err := strictyaml.Parse("a.yaml", []byte(tc.text))
			if err == nil {
				err = docs[0].Decode(&configv1.NamespaceRequest{})
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v\nwant %s", err, tc.want)
			}
			if _, ok := errors.AsType[*strictyaml.Error](err); !ok {
				t.Errorf("the error is a %T and holds no *strictyaml.Error", err)
			}
		})
	}
}

func TestReportsEveryProblemInOrder(t *testing.T) {
	docs, err := strictyaml.Parse("a.yaml", []byte("team: true\nneeds: {ttl: x}\nbad: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	err = docs[0].Decode(&configv1.NamespaceRequest{})
	problems, ok := errors.AsType[strictyaml.Errors](err)
	if !ok || len(problems) != 3 || problems[0].Field != "team" || problems[1].Line != 2 || problems[2].Line != 3 {
		t.Errorf("got %v", err)
	}
}

func TestTakesMapsAndNumbersAsText(t *testing.T) {
	var got configv1.Backend
	decode(t, "name: redis-main\nconfig: {database: 3}\nlabels: {region: eu, zone: '1'}\n",
		func(d *strictyaml.Document) error {
			if err := d.Decode(&got); err != nil {
				return err
			}
			if line, ok := d.Position(`labels["zone"]`); !ok || line != 3 {
				t.Errorf("labels[zone] is on line %d", line)
			}
			return nil
		})
	want := &configv1.Backend{Name: "redis-main", Config: map[string]string{"database": "3"}, Labels: map[string]string{"region": "eu", "zone": "1"}}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("a: &b [*b]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := strictyaml.Parse("a.yaml", data)
		if err != nil && len(docs) > 0 {
			t.Fatal("documents besides an error")
		}
		for _, d := range docs {
			if err := d.Decode(&configv1.NamespaceRequest{}); err != nil && err.Error() == "" {
				t.Fatal("an empty error")
			}
		}
	})
}
