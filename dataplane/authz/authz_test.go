package authz_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/prism-gateway/prism/dataplane/authz"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/principal"
)

func table() authz.Table {
	return authz.NewTable(datav1.File_prism_data_v1_keyvalue_proto, datav1.File_prism_data_v1_session_proto)
}

func TestEveryMethodDeclaresItsPermission(t *testing.T) {
	writes := map[string]bool{
		"Put": true, "Delete": true, "BatchWrite": true, "Touch": true, "DeleteRange": true, "Increment": true, "Transact": true, "WriteValue": true,
	}
	methods := table().Methods()
	if len(methods) < 21 {
		t.Fatalf("only %d methods: %v", len(methods), methods)
	}
	for _, m := range methods {
		want := authz.Read
		if writes[m[strings.LastIndexByte(m, '/')+1:]] {
			want = authz.Write
		}
		if got := table().Needs(m); got != want {
			t.Errorf("%s needs %s, want %s", m, got, want)
		}
	}
}

// SE-02, SE-03
func TestAMethodThatIsNotKnownIsNobodys(t *testing.T) {
	everybody, err := authz.Compile("payments", nil)
	if err != nil {
		t.Fatal(err)
	}
	owner := &principal.Principal{Kind: principal.Service, ID: "x", Teams: []string{"payments"}}
	if !everybody.Allows(owner, authz.Write) {
		t.Fatal("the namespace's team may not write")
	}
	for _, m := range []string{"", "Get", "prism.data.v1.KeyValue/Get", "/prism.data.v1.KeyValue/get", "/prism.data.v1.KeyValue/Get/", "/prism.data.v1.KeyValue/Drop", "//Get"} {
		if needs := table().Needs(m); needs != authz.None || everybody.Allows(owner, needs) {
			t.Errorf("%q needs %s", m, needs)
		}
	}
}

func rule(kind, name string) *configv1.Principal {
	switch kind {
	case "team":
		return &configv1.Principal{Who: &configv1.Principal_Team{Team: name}}
	case "group":
		return &configv1.Principal{Who: &configv1.Principal_Group{Group: name}}
	case "subject":
		return &configv1.Principal{Who: &configv1.Principal_Subject{Subject: name}}
	}
	return &configv1.Principal{Who: &configv1.Principal_Spiffe{Spiffe: name}}
}

// SE-06: random policies give what a table written down from their meaning gives.
func TestDecisionsAreThoseOfAReferenceTable(t *testing.T) {
	names := map[string][]string{
		"team": {"a", "b"}, "group": {"a", "b"}, "subject": {"a", "b"},
		"spiffe": {"spiffe://x/ns/a", "spiffe://x/ns/b", "spiffe://x/ns/*", "spiffe://x/*/a", "spiffe://y/ns/a", "spiffe://x/ns"},
	}
	ids := []string{"", "spiffe://x/ns/a", "spiffe://x/ns/b", "spiffe://x/ms/a", "spiffe://x/ns", "spiffe://x/ns/a/b", "spiffe://y/ns/a"}
	some := func(t *rapid.T, label string) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 2, rapid.ID[string]).Draw(t, label)
	}
	rapid.Check(t, func(t *rapid.T) {
		access, lists := &configv1.Access{}, map[string][]*configv1.Principal{}
		for _, list := range []string{"owners", "writers", "readers"} {
			for range rapid.IntRange(0, 3).Draw(t, list) {
				kind := rapid.SampledFrom([]string{"team", "group", "subject", "spiffe"}).Draw(t, "kind")
				lists[list] = append(lists[list], rule(kind, rapid.SampledFrom(names[kind]).Draw(t, "name")))
			}
		}
		access.Owners, access.Writers, access.Readers = lists["owners"], lists["writers"], lists["readers"]
		team := rapid.SampledFrom([]string{"a", "c"}).Draw(t, "team")
		policy, err := authz.Compile(team, access)
		if err != nil {
			t.Fatal(err)
		}
		who := &principal.Principal{
			Kind: principal.User, SPIFFE: rapid.SampledFrom(ids).Draw(t, "id"), Subject: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "subject"),
			Teams: some(t, "teams"), Groups: some(t, "groups"),
		}
		in := func(list string) bool {
			for _, r := range lists[list] {
				if means(r, who) {
					return true
				}
			}
			return false
		}
		owner := in("owners") || has(who.Teams, team)
		want := map[authz.Permission]bool{
			authz.None: false, authz.Write: owner || in("writers"), authz.Read: owner || in("writers") || in("readers"),
		}
		for need, may := range want {
			if got := policy.Allows(who, need); got != may {
				t.Errorf("%s: %t, want %t, for %+v by %v of team %s", need, got, may, who, access, team)
			}
			if policy.Allows(nil, need) {
				t.Errorf("nobody has %s", need)
			}
		}
	})
}

// means is what a rule says, written down once more and slowly.
func means(r *configv1.Principal, who *principal.Principal) bool {
	switch w := r.GetWho().(type) {
	case *configv1.Principal_Team:
		return has(who.Teams, w.Team)
	case *configv1.Principal_Group:
		return has(who.Groups, w.Group)
	case *configv1.Principal_Subject:
		return who.Subject == w.Subject
	case *configv1.Principal_Spiffe:
		pattern, id := strings.Split(w.Spiffe, "/"), strings.Split(who.SPIFFE, "/")
		for i := range pattern {
			if len(id) != len(pattern) || pattern[i] != "*" && pattern[i] != id[i] {
				return false
			}
		}
		return true
	}
	return false
}

func has(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}

func TestARuleThatNamesNobodyIsRefusedWithItsPlace(t *testing.T) {
	for name, id := range map[string]string{
		"a '*' beside a letter": "spiffe://x/ns/a*", "a domain": "spiffe://*/ns/a", "dots": "spiffe://x/../a", "an escape": "spiffe://x/%2f/a", "capitals in the domain": "spiffe://X/a",
		"a NUL": "spiffe://x/a\x00", "another scheme": "https://x/a", "nothing after": "spiffe://x/", "a look-alike": "spiffe://x/ns/\u0430",
	} {
		_, err := authz.Compile("t", &configv1.Access{Writers: []*configv1.Principal{rule("team", "a"), rule("spiffe", id)}})
		if err == nil || !strings.Contains(err.Error(), "writers: [1].spiffe") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := authz.Compile("t", &configv1.Access{Readers: []*configv1.Principal{{}}}); err == nil {
		t.Error("a rule without a name is taken")
	}
}
