package admission

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// backendRules are the rules between the fields of a backend.
var backendRules = []struct {
	id    string
	check func(*configv1.Backend, catalog.BackendType, report)
}{
	{"backend.endpoints", backendEndpoints},
	{"backend.config", backendConfig},
	{"backend.credential_path", backendCredentialPath},
	{"backend.capacity", backendCapacity},
}

// ValidateBackend holds a backend against every rule, as Validate does a request.
func ValidateBackend(b *configv1.Backend) []fault.Violation {
	found := constraint.Check(b)
	t, ok := catalog.Type(b.GetType())
	if !ok {
		return append(found, fault.Violation{Field: "type", Rule: "backend.type",
			Text: fmt.Sprintf("unknown backend type %q%s", constraint.Clip(b.GetType()), strictyaml.Suggest(b.GetType(), backendTypes()))})
	}
	for _, r := range backendRules {
		r.check(b, t, func(field, format string, args ...any) {
			found = append(found, fault.Violation{Field: field, Rule: r.id, Text: fmt.Sprintf(format, args...)})
		})
	}
	return found
}

// BackendNotOffered returns what a well-formed backend asks for and this build cannot do.
func BackendNotOffered(b *configv1.Backend) []fault.Violation {
	var found []fault.Violation
	if t, ok := catalog.Type(b.GetType()); ok && !t.Offered {
		found = append(found, fault.Violation{Field: "type", Rule: "offered.backend_type",
			Text: fmt.Sprintf("this build has no driver for %s yet", t.Name)})
	}
	return found
}

func backendEndpoints(b *configv1.Backend, t catalog.BackendType, report report) {
	switch {
	case t.Address == catalog.NoAddress && len(b.GetEndpoints()) > 0:
		report("endpoints", "a %s backend lives in the proxy and has no endpoints; leave them out", t.Name)
		return
	case t.NeedsEndpoint && len(b.GetEndpoints()) == 0:
		report("endpoints", "a %s backend needs at least one: %s", t.Name, addressForm(t))
	case t.MaxEndpoints > 0 && len(b.GetEndpoints()) > t.MaxEndpoints:
		report("endpoints", "a %s backend has %d at most, not %d", t.Name, t.MaxEndpoints, len(b.GetEndpoints()))
	}
	for i, e := range b.GetEndpoints() {
		at := "endpoints[" + strconv.Itoa(i) + "]"
		switch {
		case strings.Contains(e, "://") || userInfo.MatchString(e):
			report(at, "want %s, not a URL, so that no credential can hide in it", addressForm(t))
		case t.Address == catalog.HostPort && !hostPort(e):
			report(at, "%q: want %s", constraint.Clip(e), addressForm(t))
		case t.Address == catalog.FileAddress && (strings.ContainsAny(e, "?#\x00") || strings.HasPrefix(e, ":") || strings.HasPrefix(e, "file:")):
			report(at, "%q: want %s", constraint.Clip(e), addressForm(t))
		}
	}
}

func addressForm(t catalog.BackendType) string {
	if t.Address == catalog.FileAddress {
		return "the path of a file, such as /var/lib/prism/data.db"
	}
	return "host:port, such as store.example.org:6379"
}

func backendConfig(b *configv1.Backend, t catalog.BackendType, report report) {
	for _, key := range slices.Sorted(maps.Keys(b.GetConfig())) {
		at := "config[" + strconv.Quote(key) + "]"
		if why := holdsCredential(key, b.GetConfig()[key]); why != "" {
			report(at, "%s; %s", why, keepElsewhere)
			continue
		}
		setting, known := t.Setting(key)
		switch {
		case !t.Offered: // its settings are not known
		case len(t.Settings) == 0:
			report(at, "a %s backend takes no settings", t.Name)
		case !known:
			var names []string
			for _, s := range t.Settings {
				names = append(names, s.Name)
			}
			report(at, "a %s backend has no such setting%s", t.Name, strictyaml.Suggest(key, names))
		case setting.Form == catalog.Number:
			if _, err := strconv.ParseUint(b.GetConfig()[key], 10, 31); err != nil {
				report(at, "%q: want a whole number from 0", constraint.Clip(b.GetConfig()[key]))
			}
		case setting.Form == catalog.Duration:
			if d, err := time.ParseDuration(b.GetConfig()[key]); err != nil || d <= 0 {
				report(at, "%q: want a duration such as 10s", constraint.Clip(b.GetConfig()[key]))
			}
		case setting.Form == catalog.Text && b.GetConfig()[key] == "":
			report(at, "want a value")
		case setting.Form == catalog.OneOf && !slices.Contains(setting.Values, b.GetConfig()[key]):
			report(at, "%q: want one of %s", constraint.Clip(b.GetConfig()[key]), strings.Join(setting.Values, ", "))
		}
	}
}

func backendCredentialPath(b *configv1.Backend, _ catalog.BackendType, report report) {
	if path := b.GetCredentialPath(); path != "" && !credentialPath(path) {
		report("credential_path", "want the place where the credential is kept, such as vault://database/creds/orders (%s://…), never the credential itself", strings.Join(schemes, "://…, "))
	}
}

func backendCapacity(b *configv1.Backend, _ catalog.BackendType, report report) {
	if size := b.GetCapacity().GetDataSize(); wellFormedSize.MatchString(size) {
		if _, err := ParseSize(size); err != nil {
			report("capacity.data_size", "%s", err)
		}
	}
}
