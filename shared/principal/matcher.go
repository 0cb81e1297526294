package principal

import (
	"fmt"
	"slices"
	"strings"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

// Matcher is a list of rules, any of which a principal may fit. It does not change. The zero value fits nobody.
type Matcher struct {
	teams, groups, subjects map[string]bool
	ids                     map[string]bool // SPIFFE ids without '*'
	patterns                [][]string      // others, by their segments
}

// NewMatcher compiles rules. An error says which is wrong.
func NewMatcher(rules []*configv1.Principal) (Matcher, error) {
	var m Matcher
	add := func(to *map[string]bool, name string) {
		if *to == nil {
			*to = map[string]bool{}
		}
		(*to)[name] = true
	}
	for i, r := range rules {
		switch who := r.GetWho().(type) {
		case *configv1.Principal_Team:
			add(&m.teams, who.Team)
		case *configv1.Principal_Group:
			add(&m.groups, who.Group)
		case *configv1.Principal_Subject:
			add(&m.subjects, who.Subject)
		case *configv1.Principal_Spiffe:
			if err := CheckPattern(who.Spiffe); err != nil {
				return Matcher{}, fmt.Errorf("[%d].spiffe: %w", i, err)
			}
			if strings.Contains(who.Spiffe, "*") {
				m.patterns = append(m.patterns, strings.Split(who.Spiffe, "/"))
			} else {
				add(&m.ids, who.Spiffe)
			}
		default:
			return Matcher{}, fmt.Errorf("[%d]: names nobody", i)
		}
	}
	return m, nil
}

// CheckPattern reports what is wrong with a pattern of SPIFFE ids: an id in which '*' stands for whole segments of the path.
func CheckPattern(pattern string) error {
	segments := strings.Split(pattern, "/")
	for i := 3; i < len(segments); i++ { // after the scheme and the trust domain
		if segments[i] == "*" {
			segments[i] = "any"
		}
	}
	return CheckSPIFFE(strings.Join(segments, "/"))
}

// Match reports whether the principal fits a rule.
func (m Matcher) Match(p *Principal) bool {
	if p == nil {
		return false
	}
	in := func(set map[string]bool) func(string) bool { return func(name string) bool { return set[name] } }
	if slices.ContainsFunc(p.Teams, in(m.teams)) || slices.ContainsFunc(p.Groups, in(m.groups)) {
		return true
	}
	if p.Subject != "" && m.subjects[p.Subject] || p.SPIFFE != "" && m.ids[p.SPIFFE] {
		return true
	}
	return p.SPIFFE != "" && slices.ContainsFunc(m.patterns, func(pattern []string) bool { return fits(pattern, p.SPIFFE) })
}

// fits compares an id with a pattern, segment by segment.
func fits(pattern []string, id string) bool {
	for i, want := range pattern {
		segment, rest, more := strings.Cut(id, "/")
		if want != "*" && want != segment || more != (i < len(pattern)-1) {
			return false
		}
		id = rest
	}
	return true
}
