package assembly

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/dataplane/authz"
	"github.com/prism-gateway/prism/dataplane/breaker"
	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/limit"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/dataplane/pool"
	"github.com/prism-gateway/prism/dataplane/routing"
	"github.com/prism-gateway/prism/dataplane/session"
	"github.com/prism-gateway/prism/dataplane/subscribe"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/ident"
)

const keyValueType = "keyvalue"

// refusal is why a resource cannot be used, and where.
type refusal struct{ field, reason string }

func refuse(field, format string, args ...any) *refusal {
	return &refusal{field: field, reason: fmt.Sprintf(format, args...)}
}

// route makes the route of a namespace. What it opened is closed again when it is refused.
func (c *change) route(name string, o subscribe.Object, shared map[string]subscribe.Object, old *routing.Route, n ident.Partition) (*routing.Route, *refusal) {
	m := &configv1.NamespaceConfig{}
	if err := proto.Unmarshal(o.Data, m); err != nil {
		return nil, refuse("", "the bytes are not a NamespaceConfig")
	}
	switch {
	case m.GetNamespace() != name:
		return nil, refuse("namespace", "is %q in a resource of another name", m.GetNamespace())
	case m.GetStoragePrefix() == "":
		return nil, refuse("storage_prefix", "is empty: the keys of namespaces would mix")
	case len(m.GetPatterns()) == 0:
		return nil, refuse("patterns", "is empty")
	}
	version := o.Hash.String()
	r := &routing.Route{
		Namespace: name, Version: version, Header: map[string][]string{VersionHeader: {version}},
		Draining: m.GetDraining(), SingleOwner: m.GetSingleOwner(),
		DefaultDeadline: m.GetLimits().GetDefaultDeadline().AsDuration(), MaxDeadline: m.GetLimits().GetMaxDeadline().AsDuration(),
		Rate: m.GetLimits().GetRps(), Concurrency: m.GetLimits().GetConcurrency(),
		Config: routing.Origin{Name: namespaceName + name, Hash: o.Hash}, Traffic: c.assembler.trafficOf(n),
	}
	if refused := c.callers(r, m); refused != nil {
		return nil, refused
	}
	for i, p := range m.GetPatterns() {
		if refused := c.pattern(r, m, p, fmt.Sprintf("patterns[%d]", i), shared); refused != nil {
			for _, used := range r.Uses {
				used.Release()
			}
			return nil, refused
		}
	}
	if old != nil {
		r.Limits = old.Limits
		c.rebound(r, n) // the old route may be in use until the table is replaced
	} else {
		r.Limits = limit.New(bounds(r, c.fleet.OwnerCount(n)))
	}
	r.Seal()
	return r, nil
}

// callers fills in who may call.
func (c *change) callers(r *routing.Route, m *configv1.NamespaceConfig) *refusal {
	policy, err := authz.Compile(m.GetTeam(), m.GetAccess())
	if err != nil {
		return refuse("access", "%v", err)
	}
	auth := m.GetAuth()
	r.Callers = routing.Callers{
		Known: auth.GetEnabled(), Issuer: auth.GetToken().GetIssuer(), Audience: auth.GetToken().GetAudience(), Policy: policy,
		Session: session.Policy{TTL: auth.GetSession().GetTtl().AsDuration(), Idle: auth.GetSession().GetIdleTimeout().AsDuration()},
		Login: routing.Login{
			Address: auth.GetVault().GetAddress(), AuthPath: auth.GetVault().GetJwtAuth().GetAuthPath(),
			Role: auth.GetVault().GetJwtAuth().GetRole(), Namespace: auth.GetVault().GetVaultNamespace(),
		},
	}
	switch issuer := r.Callers.Issuer; {
	case r.Callers.Known && (r.Callers.Session.TTL <= 0 || r.Callers.Session.Idle <= 0):
		return refuse("auth.session", "does not say how long sessions live")
	case issuer != "" && !c.assembler.cfg.Issuers(issuer):
		return refuse("auth.token.issuer", "this proxy believes no issuer %s; its configuration lists those that it does in authentication.issuers", issuer)
	}
	if r.Strict = m.GetAudit() == configv1.AuditPolicy_AUDIT_POLICY_STRICT; r.Strict && !c.assembler.cfg.Audits {
		return refuse("audit", "this proxy records no access to data; its configuration says where in audit")
	}
	return nil
}

func (c *change) pattern(r *routing.Route, m *configv1.NamespaceConfig, p *configv1.PatternConfig, path string, shared map[string]subscribe.Object) *refusal {
	known, ok := catalog.PatternByType(p.GetType())
	if !ok || p.GetType() != keyValueType {
		return refuse(path+".type", "this build does not run the pattern %q", p.GetType())
	}
	if !slices.Contains(known.Versions, p.GetVersion()) {
		return refuse(path+".version", "this build does not run version %q of %s, only %v", p.GetVersion(), p.GetType(), known.Versions)
	}
	if r.KeyValue != nil {
		return refuse(path+".type", "a namespace has one pattern keyvalue, and this is the second")
	}
	bound := map[string]*opened{}
	for i, b := range p.GetBindings() {
		slot, err := ident.ParseSlot(b.GetSlot())
		at := fmt.Sprintf("%s.bindings[%d]", path, i)
		if err != nil {
			return refuse(at+".slot", "%v", err)
		}
		of, ok := known.SlotFor(slot.Purpose())
		if !ok || bound[of.Purpose] != nil {
			return refuse(at+".slot", "a %s has one storage, perhaps one cache, and no other slot", p.GetType())
		}
		needs, field := p.GetInterfaces(), func(i int) string { return fmt.Sprintf("%s.interfaces[%d]", path, i) }
		if len(of.Interfaces) > 0 { // the slot's own, which nobody wrote down
			needs, field = of.Interfaces, func(int) string { return at + ".backend" }
		}
		o, refused := c.open(r, b, at, needs, field, of.Copies, shared)
		if refused != nil {
			return refused
		}
		bound[of.Purpose] = o
	}
	storage, cache := bound["storage"], bound["cache"]
	switch {
	case storage == nil:
		return refuse(path+".bindings", "no backend is bound for storage")
	case (cache == nil) != (p.GetMaxStaleness().AsDuration() == 0):
		return refuse(path+".max_staleness", "a cache and how old its copies may be go together")
	}
	cfg := keyvalue.Config{
		Namespace: m.GetNamespace(), Space: driver.Space(m.GetStoragePrefix()), Instance: storage.instance, Breaker: storage.breaker,
		Interfaces: p.GetInterfaces(), Consistency: consistencyOf(p.GetConsistency()), DefaultTTL: p.GetDefaultTtl().AsDuration(),
		MaxValueBytes: maxValue(p.GetMaxValueBytes(), storage.backendType), MaxStaleness: p.GetMaxStaleness().AsDuration(), Now: c.assembler.cfg.Now,
	}
	if cache != nil {
		cfg.Cache = cache.instance
	}
	store, err := keyvalue.New(cfg)
	if err != nil {
		return refuse(path, "%v", err)
	}
	r.KeyValue, r.Traits = store, traitsOf(storage.backendType)
	return nil
}

// opened is a backend that a slot is bound to.
type opened struct {
	instance    driver.Instance
	breaker     *breaker.Breaker
	backendType string
}

// copiesIn is a backend that holds copies only: calls succeed without it.
type copiesIn struct{ routing.Use }

// Unready is always empty.
func (copiesIn) Unready() string { return "" }

// open opens the backend of a binding, at a path; needs are the interfaces that it must have, field is where each is asked
// for, and copies says that it holds nothing else. The route then uses it.
func (c *change) open(r *routing.Route, binding *configv1.Binding, at string, needs []string, field func(i int) string, copies bool, shared map[string]subscribe.Object) (*opened, *refusal) {
	resource := backendName + binding.GetBackend()
	object, ok := shared[resource]
	if !ok {
		return nil, refuse(at+".backend", "there is no backend %q in the shared set of this partition", binding.GetBackend())
	}
	backend, err := c.backend(binding.GetBackend(), object)
	if err != nil {
		return nil, refuse(at+".backend", "%v", err)
	}
	d, ok := c.assembler.cfg.Pools.Driver(backend.Type)
	if !ok {
		return nil, refuse(at+".backend", "no driver for %s in this build", backend.Type)
	}
	for i, name := range needs {
		if !slices.Contains(d.Interfaces(), name) {
			return nil, refuse(field(i), "the driver for %s does not offer %s", backend.Type, name)
		}
	}
	out, use := &opened{backendType: backend.Type}, routing.Use(nil)
	if path := cmp.Or(binding.GetCredentialPath(), backend.CredentialPath); path != "" {
		lease, refused := c.lease(r, path, binding.GetCredentialScope(), at)
		if refused != nil {
			return nil, refused
		}
		l, err := c.assembler.cfg.Pools.Lease(*backend, *lease)
		if err != nil {
			return nil, refuse(at+".credential_path", "backend %q cannot be opened: %s", binding.GetBackend(), publicText(err))
		}
		out.instance, out.breaker, use = l, l.Breaker(), l
	} else {
		p, err := c.assembler.cfg.Pools.Acquire(*backend)
		if err != nil {
			return nil, refuse(at+".backend", "backend %q cannot be opened: %s", binding.GetBackend(), publicText(err))
		}
		out.instance, out.breaker, use = p.Instance(), p.Breaker(), p
	}
	if copies {
		use = copiesIn{use}
	}
	r.Uses = append(r.Uses, use)
	r.Backends = append(r.Backends, routing.Origin{Name: resource, Hash: object.Hash})
	return out, nil
}

// lease says where the credential at a path comes from, and who shares it.
func (c *change) lease(r *routing.Route, path string, scope configv1.CredentialScope, at string) (*pool.Lease, *refusal) {
	provider, rest, ok := strings.Cut(path, "://")
	if !ok || rest == "" {
		return nil, refuse(at+".credential_path", "names no provider and path, such as vault://database/creds/orders")
	}
	address, ok := c.assembler.cfg.Providers[provider]
	if !ok {
		return nil, refuse(at+".credential_path", "this proxy has no provider of credentials that is named %s; its configuration lists them in credential_providers", provider)
	}
	l := &pool.Lease{Namespace: r.Namespace, Provider: provider, Path: rest}
	switch scope {
	case configv1.CredentialScope_CREDENTIAL_SCOPE_PRINCIPAL:
		l.Scope = pool.ByPrincipal
	case configv1.CredentialScope_CREDENTIAL_SCOPE_SESSION:
		l.Scope = pool.BySession
	}
	as := r.Callers.Login
	switch {
	case l.Scope == pool.ByNamespace:
		return l, nil // the proxy asks, as itself
	case !r.Callers.Known:
		return nil, refuse(at+".credential_scope", "each caller has a credential of its own, and the namespace does not ask who calls")
	case as.Address != "" && as.Address != address:
		return nil, refuse("auth.vault.address", "the provider %s of this proxy is at another address", provider)
	}
	r.Affine = true
	l.Login = credential.Login{AuthPath: as.AuthPath, Role: as.Role, VaultNamespace: as.Namespace}
	return l, nil
}

// publicText is what a driver says of its configuration: its own message and that of the cause.
func publicText(err error) string {
	if cause := errors.Unwrap(err); cause != nil && cause.Error() != err.Error() {
		return err.Error() + ": " + cause.Error()
	}
	return err.Error()
}

// traitsOf is what a caller ought to know of a kind of backend, without its name.
func traitsOf(backendType string) routing.Traits {
	t, _ := catalog.Type(backendType)
	traits := routing.Traits{TTLGranularity: t.TTLGranularity, Durability: strings.ToLower(strings.TrimPrefix(t.Durability.String(), "DURABILITY_"))}
	if t.SingleProcess {
		traits.Notes = append(traits.Notes, "The data lives in one proxy and dies with it.")
	}
	if t.SingleMachine {
		traits.Notes = append(traits.Notes, "The data lives on one machine.")
	}
	return traits
}

func consistencyOf(c configv1.Consistency) keyvalue.Consistency {
	switch c {
	case configv1.Consistency_CONSISTENCY_EVENTUAL:
		return keyvalue.Eventual
	case configv1.Consistency_CONSISTENCY_READ_YOUR_WRITES:
		return keyvalue.ReadYourWrites
	}
	return keyvalue.Strong
}

// maxValue is the smaller of what the namespace and its backend allow.
func maxValue(asked uint64, backendType string) uint64 {
	most := uint64(1 << 20)
	if t, ok := catalog.Type(backendType); ok && t.MaxValueBytes > 0 {
		most = t.MaxValueBytes
	}
	if asked == 0 {
		return most
	}
	return min(asked, most)
}
