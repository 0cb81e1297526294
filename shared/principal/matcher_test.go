package principal_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/principal"
)

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

func TestRulesNameCallers(t *testing.T) {
	api := &principal.Principal{Kind: principal.Service, SPIFFE: "spiffe://example.org/ns/prod/sa/api", Teams: []string{"payments"}}
	ann := &principal.Principal{Kind: principal.User, Subject: "ann", Issuer: "https://idp", Groups: []string{"analytics"}}
	for name, tc := range map[string]struct {
		kind, rule string
		who        *principal.Principal
		want       bool
	}{
		"an id":                                 {"spiffe", "spiffe://example.org/ns/prod/sa/api", api, true},
		"a star for a segment":                  {"spiffe", "spiffe://example.org/ns/*/sa/api", api, true},
		"stars":                                 {"spiffe", "spiffe://example.org/*/*/*/*", api, true},
		"a star at the end":                     {"spiffe", "spiffe://example.org/ns/prod/sa/*", api, true},
		"a star is one segment, not two":        {"spiffe", "spiffe://example.org/ns/prod/*", api, false},
		"nor none":                              {"spiffe", "spiffe://example.org/ns/prod/sa/api/*", api, false},
		"the beginning of an id is not the id":  {"spiffe", "spiffe://example.org/ns/prod/sa", api, false},
		"case counts":                           {"spiffe", "spiffe://example.org/ns/prod/sa/API", api, false},
		"another trust domain":                  {"spiffe", "spiffe://example.com/ns/prod/sa/api", api, false},
		"a pattern of another trust domain":     {"spiffe", "spiffe://example.com/*/*/*/*", api, false},
		"a pattern is not for who has no id":    {"spiffe", "spiffe://example.org/*", ann, false},
		"a team":                                {"team", "payments", api, true},
		"a group":                               {"group", "analytics", ann, true},
		"a subject":                             {"subject", "ann", ann, true},
		"a team is not a group":                 {"group", "payments", api, false},
		"a group is not a team":                 {"team", "analytics", ann, false},
		"a subject is not an issuer":            {"subject", "https://idp", ann, false},
		"nobody is in no team":                  {"team", "payments", nil, false},
		"nobody has no id":                      {"spiffe", "spiffe://example.org/*", nil, false},
		"who says nothing has no empty subject": {"subject", "", api, false},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := principal.NewMatcher([]*configv1.Principal{rule(tc.kind, tc.rule)})
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Match(tc.who); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
	if (principal.Matcher{}).Match(api) {
		t.Error("without a rule everybody fits")
	}
}

// SE-04
func TestPatternsThatAreNoneAreRefused(t *testing.T) {
	for _, pattern := range []string{
		"", "*", "spiffe://", "spiffe://*", "spiffe://*/a", "*://x/a", "spiffe://x*/a", "spiffe://x/", "spiffe://x/a*", "spiffe://x/*a", "spiffe://x/**", "spiffe://x//*",
		"spiffe://x/../*", "spiffe://x/%2a", "spiffe://x/*/", "spiffe://X/*", "SPIFFE://x/*", "spiffe://x:1/*", "spiffe://x/*?", "spiffe://x/*#", "spiffe://x/\x00/*",
		"spiffe://x/\u0430/*", "https://x/*", "spiffe:/x/*", "spiffe://x/ *", "spiffe://x/" + strings.Repeat("a", 2100),
	} {
		if err := principal.CheckPattern(pattern); err == nil {
			t.Errorf("%q passes", pattern)
		}
		_, err := principal.NewMatcher([]*configv1.Principal{rule("team", "a"), rule("spiffe", pattern)})
		if err == nil || !strings.HasPrefix(err.Error(), "[1].spiffe: ") {
			t.Errorf("%q: %v", pattern, err)
		}
	}
	if _, err := principal.NewMatcher([]*configv1.Principal{{}}); err == nil {
		t.Error("a rule that names nobody passes")
	}
}

// meant is what rules mean, written down from the words of their documentation.
func meant(rules []*configv1.Principal, who *principal.Principal) bool {
	for _, r := range rules {
		switch {
		case who == nil:
		case r.GetTeam() != "":
			if slices.Contains(who.Teams, r.GetTeam()) {
				return true
			}
		case r.GetGroup() != "":
			if slices.Contains(who.Groups, r.GetGroup()) {
				return true
			}
		case r.GetSubject() != "":
			if who.Subject == r.GetSubject() {
				return true
			}
		case likePattern(r.GetSpiffe(), who.SPIFFE):
			return true
		}
	}
	return false
}

func likePattern(pattern, id string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(id, "/")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if want[i] != "*" && want[i] != got[i] {
			return false
		}
	}
	return true
}

// SE-06
func TestMatchersDecideAsTheirRulesMean(t *testing.T) {
	segment := rapid.SampledFrom([]string{"a", "b", "*"})
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"a", "b", "c"})
		var rules []*configv1.Principal
		for range rapid.IntRange(0, 5).Draw(t, "rules") {
			kind := rapid.SampledFrom([]string{"team", "group", "subject", "spiffe"}).Draw(t, "kind")
			name := word.Draw(t, "name")
			if kind == "spiffe" {
				name = strings.Join(append([]string{"spiffe://" + name}, rapid.SliceOfN(segment, 0, 3).Draw(t, "path")...), "/")
			}
			rules = append(rules, rule(kind, name))
		}
		m, err := principal.NewMatcher(rules)
		if err != nil {
			t.Fatal(err)
		}
		var who *principal.Principal
		if rapid.IntRange(0, 9).Draw(t, "somebody") > 0 {
			who = &principal.Principal{
				Teams: rapid.SliceOfN(word, 0, 2).Draw(t, "teams"), Groups: rapid.SliceOfN(word, 0, 2).Draw(t, "groups"),
				Subject: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "subject"),
			}
			if rapid.Bool().Draw(t, "spiffe") {
				path := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3).Draw(t, "id")
				who.SPIFFE = strings.Join(append([]string{"spiffe://" + word.Draw(t, "domain")}, path...), "/")
			}
		}
		if got, want := m.Match(who), meant(rules, who); got != want {
			t.Fatalf("%v, want %v: rules %v, who %+v", got, want, rules, who)
		}
	})
}

// A pattern that is taken fits what it says segment by segment, and a star nothing but one whole segment.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{
		{"spiffe://x/*", "spiffe://x/a"}, {"spiffe://x/a/*", "spiffe://x/a/b/c"}, {"spiffe://x/*/b", "spiffe://x/a%2fc/b"}, {"spiffe://*", "spiffe://x"}, {"spiffe://x/a*", "spiffe://x/ab"},
		{"spiffe://x", "spiffe://x"}, {"spiffe://x/*\x00", "spiffe://x/\x00"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, id string) {
		m, err := principal.NewMatcher([]*configv1.Principal{rule("spiffe", pattern)})
		if (err == nil) != (principal.CheckPattern(pattern) == nil) {
			t.Fatalf("%q: the check and the matcher differ: %v", pattern, err)
		}
		if err != nil || principal.CheckSPIFFE(id) != nil {
			return
		}
		if got, want := m.Match(&principal.Principal{SPIFFE: id}), likePattern(pattern, id); got != want {
			t.Fatalf("%q fits %q: %v, want %v", pattern, id, got, want)
		}
		if !strings.Contains(pattern, "*") && m.Match(&principal.Principal{SPIFFE: id}) != (pattern == id) {
			t.Fatalf("%q fits %q", pattern, id)
		}
	})
}
