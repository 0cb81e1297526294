package admission

import (
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// A rule is one thing that must hold between the fields of a request. Its id is stable.
type rule struct {
	id    string
	check func(*configv1.NamespaceRequest, report)
}

// report notes a violation of the rule at work: the field's path, and what would be right.
type report func(field, format string, args ...any)

// rules are all rules between fields, in the order in which they are reported.
var rules = []rule{
	{"pattern.known", patternKnown},
	{"pattern.version", patternVersion},
	{"pattern.name_unique", patternNameUnique},
	{"pattern.type_once", patternTypeOnce},
	{"session_aware.session_manager", sessionAwareNeedsManager},
	{"session_aware.auth", sessionAwareNeedsAuth},
	{"session_manager.auth", sessionManagerNeedsAuth},
	{"session_policy.idle_within_ttl", idleWithinTTL},
	{"credential.path", credentialPaths},
	{"slot.config_credential", slotConfigHoldsNoCredential},
	{"slot.purpose", slotPurpose},
	{"slot.type", slotType},
	{"slot.purpose_once", slotPurposeOnce},
	{"needs.messages_only", messagesOnly},
	{"needs.values_only", valuesOnly},
	{"pubsub.consistency", pubsubNotStrong},
	{"needs.max_staleness", staleness},
	{"interface.known", interfaceKnown},
	{"interface.pattern", interfaceFitsPattern},
	{"needs.size", sizes},
	{"limits.deadlines", deadlines},
	{"principal.spiffe", spiffePatterns},
	{"access.auth", accessNeedsAuth},
	{"auth.credentials", credentialsOfCallers},
}

func patternKnown(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		if _, ok := catalog.PatternByType(p.pattern.GetType()); !ok {
			report(p.name, "unknown pattern %q%s", constraint.Clip(p.pattern.GetType()), strictyaml.Suggest(p.pattern.GetType(), patternTypes()))
		}
	}
}

func patternTypes() []string {
	var out []string
	for _, p := range catalog.Patterns() {
		out = append(out, p.Type)
	}
	return out
}

func patternVersion(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		known, ok := catalog.PatternByType(p.pattern.GetType())
		if !wellFormedVersion.MatchString(p.pattern.GetVersion()) {
			continue // the field's own rule tells
		}
		if _, found := ResolveVersion(known.Versions, p.pattern.GetVersion()); ok && !found {
			report(p.at+"version", "no version of %s is in %q; there is %s", known.Type, p.pattern.GetVersion(), strings.Join(known.Versions, ", "))
		}
	}
}

// ResolveVersion returns the first of versions, which stand newest first, that a range such as "1.x", "1" or "1.0.0"
// admits. An empty range admits all.
func ResolveVersion(versions []string, want string) (string, bool) {
	for _, v := range versions {
		admitted := true
		have := strings.Split(v, ".")
		for i, step := range strings.Split(want, ".") {
			if want != "" && step != "x" && step != have[i] {
				admitted = false
			}
		}
		if admitted {
			return v, true
		}
	}
	return "", false
}

func patternNameUnique(req *configv1.NamespaceRequest, report report) {
	first := map[string]int{}
	for i, p := range req.GetPatterns() {
		if before, twice := first[p.GetName()]; twice {
			report("patterns["+strconv.Itoa(i)+"].name", "patterns[%d] is named %q too; give each pattern a name of its own", before, constraint.Clip(p.GetName()))
			continue
		}
		first[p.GetName()] = i
	}
}

func patternTypeOnce(req *configv1.NamespaceRequest, report report) {
	first := map[string]int{}
	for i, p := range req.GetPatterns() {
		if before, twice := first[p.GetType()]; twice {
			report("patterns["+strconv.Itoa(i)+"].type", "patterns[%d] is a %s too; a namespace has at most one of a type, because calls name only the namespace", before, constraint.Clip(p.GetType()))
			continue
		}
		first[p.GetType()] = i
	}
}

func sessionAwareNeedsManager(req *configv1.NamespaceRequest, report report) {
	manager := slices.ContainsFunc(req.GetPatterns(), func(p *configv1.Pattern) bool { return p.GetType() == "session-manager" })
	for _, p := range parts(req) {
		if p.pattern.GetSessionAware() && !manager {
			report(p.at+"session_aware", "a session-aware pattern needs a pattern of type session-manager in the namespace")
		}
	}
}

func sessionAwareNeedsAuth(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		if p.pattern.GetSessionAware() && !req.GetAuth().GetEnabled() {
			report(p.at+"session_aware", "a session-aware pattern needs auth.enabled: true")
		}
	}
}

func sessionManagerNeedsAuth(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		if p.pattern.GetType() == "session-manager" && !req.GetAuth().GetEnabled() {
			report(p.name, "a session-manager needs auth.enabled: true, since sessions belong to authenticated callers")
		}
	}
}

func idleWithinTTL(req *configv1.NamespaceRequest, report report) {
	s := req.GetAuth().GetSession()
	if s.GetIdleTimeout() != nil && s.GetTtl() != nil && s.GetIdleTimeout().AsDuration() > s.GetTtl().AsDuration() {
		report("auth.session.idle_timeout", "%s is longer than auth.session.ttl (%s); want at most that", constraint.Duration(s.GetIdleTimeout()), constraint.Duration(s.GetTtl()))
	}
}

// schemes are where credentials may be kept.
var schemes = []string{"vault", "awssm", "gcpsm", "azurekv", "file", "env"}

func credentialPaths(req *configv1.NamespaceRequest, report report) {
	check := func(field, path string) {
		if path == "" || credentialPath(path) {
			return
		}
		if req.GetAuth().GetEnabled() {
			report(field, "a static credential is refused where auth is enabled; name where it is kept, such as vault://database/creds/orders")
			return
		}
		report(field, "want the place where the credential is kept, such as vault://database/creds/orders (%s://…), never the credential itself", strings.Join(schemes, "://…, "))
	}
	for _, p := range parts(req) {
		for i, s := range p.pattern.GetSlots() {
			check(p.at+"slots["+strconv.Itoa(i)+"].credential_path", s.GetCredentialPath())
		}
	}
	check("auth.vault.credentials.path", req.GetAuth().GetVault().GetCredentials().GetPath())
}

// credentialPath reports whether a text names a place: a provider, which is a known scheme or one with a name of its own
// such as vault-eu, a path, and nothing that could be a credential.
func credentialPath(s string) bool {
	provider, path, ok := strings.Cut(s, "://")
	scheme, _, _ := strings.Cut(provider, "-")
	return ok && providerName.MatchString(provider) && slices.Contains(schemes, scheme) && path != "" && !strings.ContainsAny(path, "@ \t\r\n")
}

var providerName = regexp.MustCompile(`^[a-z]+(-[a-z0-9]+)*$`)

var (
	credentialName = regexp.MustCompile(`(?i)(pass(word|wd|phrase)?|pwd|secret|token|credential|private|api[-_.]?key|access[-_.]?key|auth|user(name)?|login)`)
	userInfo       = regexp.MustCompile(`(?i)[a-z][a-z0-9+.-]*://[^/\s]*@|:[^/\s:]+@`)
)

// holdsCredential says why a setting looks like a credential; empty when it does not.
func holdsCredential(key, value string) string {
	switch {
	case credentialName.MatchString(key):
		return "settings never hold credentials"
	case userInfo.MatchString(value):
		return "the value looks like an address with a credential in it"
	}
	return ""
}

const keepElsewhere = "keep it in a secret store and name the place in credential_path, such as vault://database/creds/orders"

func slotConfigHoldsNoCredential(req *configv1.NamespaceRequest, report report) {
	eachSlot(req, func(at string, _ part, s *configv1.Slot) {
		for _, key := range slices.Sorted(maps.Keys(s.GetConfig())) {
			if why := holdsCredential(key, s.GetConfig()[key]); why != "" {
				report(at+"config["+strconv.Quote(key)+"]", "%s; %s", why, keepElsewhere)
			}
		}
	})
}

func eachSlot(req *configv1.NamespaceRequest, do func(at string, p part, s *configv1.Slot)) {
	for _, p := range parts(req) {
		for i, s := range p.pattern.GetSlots() {
			do(p.at+"slots["+strconv.Itoa(i)+"].", p, s)
		}
	}
}

func slotPurpose(req *configv1.NamespaceRequest, report report) {
	eachSlot(req, func(at string, p part, s *configv1.Slot) {
		slot, err := ident.ParseSlot(s.GetName())
		pattern, known := catalog.PatternByType(p.pattern.GetType())
		if err != nil || !known {
			return // other rules tell
		}
		if _, ok := pattern.SlotFor(slot.Purpose()); !ok {
			var purposes []string
			for _, s := range pattern.Slots {
				purposes = append(purposes, s.Purpose)
			}
			report(at+"name", "a %s has no slot for %q%s", pattern.Type, slot.Purpose(), strictyaml.Suggest(slot.Purpose(), purposes))
		}
	})
}

func slotType(req *configv1.NamespaceRequest, report report) {
	eachSlot(req, func(at string, _ part, s *configv1.Slot) {
		slot, err := ident.ParseSlot(s.GetName())
		if err != nil {
			return // the field's own rule tells
		}
		if _, ok := catalog.Type(slot.BackendType()); !ok {
			report(at+"name", "unknown backend type %q%s", constraint.Clip(slot.BackendType()), strictyaml.Suggest(slot.BackendType(), backendTypes()))
		}
	})
}

func backendTypes() []string {
	var out []string
	for _, t := range catalog.Types() {
		out = append(out, t.Name)
	}
	return out
}

func slotPurposeOnce(req *configv1.NamespaceRequest, report report) {
	first := map[string]string{}
	eachSlot(req, func(at string, p part, s *configv1.Slot) {
		purpose, _, _ := strings.Cut(s.GetName(), "-")
		key := p.at + purpose
		if before, twice := first[key]; twice {
			report(at+"name", "the pattern has a slot for %q already, %s; want one for each purpose", constraint.Clip(purpose), constraint.Clip(before))
			return
		}
		first[key] = s.GetName()
	})
}

// needsAt is the path of a pattern's needs.
func (p part) needsAt(field string) string { return p.at + "needs." + field }

func messagesOnly(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		if known, ok := catalog.PatternByType(p.pattern.GetType()); !ok || known.Messages {
			continue
		}
		for _, field := range []string{"max_message_size", "retention", "ordering"} {
			if has(p.pattern.GetNeeds(), field) {
				report(p.needsAt(field), "a %s has no messages; leave %s out, it is for producer, consumer and pubsub", p.pattern.GetType(), field)
			}
		}
	}
}

func valuesOnly(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		if known, ok := catalog.PatternByType(p.pattern.GetType()); !ok || known.Values {
			continue
		}
		for _, f := range []struct{ field, instead string }{{"ttl", "retention"}, {"max_value_size", "max_message_size"}} {
			if has(p.pattern.GetNeeds(), f.field) {
				report(p.needsAt(f.field), "a %s keeps no values; leave %s out, or say %s", p.pattern.GetType(), f.field, f.instead)
			}
		}
		if has(p.pattern.GetNeeds(), "max_staleness") {
			report(p.needsAt("max_staleness"), "a %s keeps no values; leave max_staleness out", p.pattern.GetType())
		}
	}
}

func pubsubNotStrong(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		if p.pattern.GetType() == "pubsub" && p.pattern.GetNeeds().GetConsistency() == configv1.Consistency_CONSISTENCY_STRONG {
			report(p.needsAt("consistency"), "a pubsub cannot be strong; want eventual, or a consumer where each message counts")
		}
	}
}

// staleness holds the age of reads against the consistency, and a cache against both.
func staleness(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		n := p.pattern.GetNeeds()
		weak := n.GetConsistency() == configv1.Consistency_CONSISTENCY_EVENTUAL || n.GetConsistency() == configv1.Consistency_CONSISTENCY_READ_YOUR_WRITES
		if n.GetMaxStaleness() != nil && !weak {
			report(p.needsAt("max_staleness"), "reads may only be old where consistency is eventual or read_your_writes; say so, or leave max_staleness out")
		}
	}
	eachSlot(req, func(at string, p part, s *configv1.Slot) {
		if purpose, _, _ := strings.Cut(s.GetName(), "-"); purpose == "cache" && p.pattern.GetNeeds().GetMaxStaleness() == nil {
			report(at+"name", "a cache needs needs.max_staleness, which says how old what it answers may be")
		}
	})
}

func interfaceKnown(req *configv1.NamespaceRequest, report report) {
	eachInterface(req, func(at string, _ part, name string) {
		if _, ok := catalog.InterfaceByName(name); !ok {
			var known []string
			for _, f := range catalog.Interfaces() {
				known = append(known, f.Name)
			}
			report(at, "unknown interface %q%s", constraint.Clip(name), strictyaml.Suggest(name, known))
		}
	})
}

func interfaceFitsPattern(req *configv1.NamespaceRequest, report report) {
	eachInterface(req, func(at string, p part, name string) {
		known, ok := catalog.InterfaceByName(name)
		if _, pattern := catalog.PatternByType(p.pattern.GetType()); ok && pattern && !slices.Contains(known.Patterns, p.pattern.GetType()) {
			report(at, "a %s cannot have %s; it is for %s", p.pattern.GetType(), name, strings.Join(known.Patterns, ", "))
		}
	})
}

func eachInterface(req *configv1.NamespaceRequest, do func(at string, p part, name string)) {
	for _, p := range parts(req) {
		for i, name := range p.pattern.GetNeeds().GetInterfaces() {
			do(p.needsAt("interfaces["+strconv.Itoa(i)+"]"), p, name)
		}
	}
}

func sizes(req *configv1.NamespaceRequest, report report) {
	for _, p := range parts(req) {
		n := p.pattern.GetNeeds()
		for _, f := range []struct{ field, size string }{
			{"data_size", n.GetDataSize()}, {"max_message_size", n.GetMaxMessageSize()}, {"max_value_size", n.GetMaxValueSize()},
		} {
			if !wellFormedSize.MatchString(f.size) {
				continue // the field's own rule tells
			}
			if _, err := ParseSize(f.size); err != nil {
				report(p.needsAt(f.field), "%s", err)
			}
		}
	}
}

var wellFormedVersion = regexp.MustCompile(`^([0-9]{1,4}(\.([0-9]{1,4}|x)){0,2})?$`)

var wellFormedSize = regexp.MustCompile(`^[0-9]{1,15}(B|KiB|MiB|GiB|TiB)$`)

func deadlines(req *configv1.NamespaceRequest, report report) {
	l := req.GetLimits()
	if l.GetDefaultDeadline() == nil && l.GetMaxDeadline() == nil {
		return
	}
	def, most := l.GetDefaultDeadline(), l.GetMaxDeadline()
	where := [2]string{"limits.default_deadline", "limits.max_deadline"}
	says := [2]string{"", ""}
	if def == nil {
		def, says[0] = catalog.DefaultLimits().GetDefaultDeadline(), ", the platform's"
	}
	if most == nil {
		most, says[1] = catalog.DefaultLimits().GetMaxDeadline(), ", the platform's"
	}
	if less(most, def) {
		at := where[0]
		if l.GetDefaultDeadline() == nil {
			at = where[1]
		}
		report(at, "default_deadline (%s%s) is longer than max_deadline (%s%s); set both so that it is not", constraint.Duration(def), says[0], constraint.Duration(most), says[1])
	}
}

func less(a, b *durationpb.Duration) bool { return a.AsDuration() < b.AsDuration() }

func spiffePatterns(req *configv1.NamespaceRequest, report report) {
	a := req.GetAccess()
	for _, list := range []struct {
		at  string
		who []*configv1.Principal
	}{{"owners", a.GetOwners()}, {"writers", a.GetWriters()}, {"readers", a.GetReaders()}} {
		for i, p := range list.who {
			id, ok := strings.CutPrefix(p.GetSpiffe(), "spiffe://")
			if !ok {
				continue
			}
			for n, segment := range strings.Split(id, "/") {
				if segment == "" || strings.Contains(segment, "*") && (n == 0 || segment != "*") {
					report("access."+list.at+"["+strconv.Itoa(i)+"].spiffe",
						"want spiffe://trust-domain/path, where '*' stands for a whole segment of the path")
					break
				}
			}
		}
	}
}

func accessNeedsAuth(req *configv1.NamespaceRequest, report report) {
	a := req.GetAccess()
	if req.GetAuth() == nil || req.GetAuth().GetEnabled() {
		return // rules of access are reason enough to ask who calls
	}
	for _, list := range []struct {
		at  string
		who []*configv1.Principal
	}{{"owners", a.GetOwners()}, {"writers", a.GetWriters()}, {"readers", a.GetReaders()}} {
		if len(list.who) > 0 {
			report("access."+list.at, "rules of access hold where callers are known, and auth.enabled is false; set it to true, or leave access out")
		}
	}
}

func credentialsOfCallers(req *configv1.NamespaceRequest, report report) {
	a := req.GetAuth()
	switch {
	case !a.GetEnabled() && (a.GetToken() != nil || a.GetVault() != nil || a.GetSession() != nil):
		report("auth", "auth.enabled is false, and the rest of auth would be ignored; set it to true, or leave auth out")
	case a.GetVault() != nil && a.GetVault().GetCredentials().GetPath() == "":
		report("auth.vault.credentials.path", "want the place where the callers' credentials are, such as vault://database/creds/orders; or leave auth.vault out, and the backend's credential is used")
	}
}

// hostPort reports whether s is host:port.
func hostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, bad := strconv.ParseUint(port, 10, 16)
	return err == nil && bad == nil && n > 0 && host != "" && !strings.ContainsAny(host, "/@ ")
}
