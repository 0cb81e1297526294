package settings

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// LoadAdmin loads the configuration of prism-admin, complete: every field that has a default is set, except replica_id.
// An empty path means that there is no file. flags come last and are checked like the rest.
func LoadAdmin(path string, env Lookup, flags ...func(*bootstrapv1.AdminConfig)) (*bootstrapv1.AdminConfig, error) {
	c := &bootstrapv1.AdminConfig{
		Listen:            "127.0.0.1:8981",
		FleetListen:       "127.0.0.1:18000",
		HttpListen:        "127.0.0.1:8095",
		Partitions:        1024,
		Owners:            3,
		MemberLease:       durationpb.New(10 * time.Second),
		PlacementDebounce: durationpb.New(10 * time.Second),
		MoveDeadline:      durationpb.New(time.Minute),
		LogLevel:          "info",
		ShutdownTimeout:   durationpb.New(10 * time.Second),
		Etcd: &bootstrapv1.EtcdConfig{
			Prefix: "/prism", DataDir: "prism-admin.etcd", RequestTimeout: durationpb.New(1500 * time.Millisecond),
		},
		History: &bootstrapv1.HistoryConfig{
			Snapshots: 1000, Age: durationpb.New(30 * 24 * time.Hour), SweepInterval: durationpb.New(10 * time.Minute),
		},
		Journal: &bootstrapv1.JournalConfig{Dir: "prism-admin.journal", MaxBytes: 64 << 20},
	}
	from, err := load(path, c, env, []Override{
		Port("PRISM_ADMIN_PORT", "listen", &c.Listen),
		Port("PRISM_FLEET_PORT", "fleet_listen", &c.FleetListen),
		Port("PRISM_ADMIN_HTTP_PORT", "http_listen", &c.HttpListen),
		List("PRISM_ETCD_ENDPOINTS", "etcd.endpoints", &c.Etcd.Endpoints),
		Text("PRISM_JOURNAL_DIR", "journal.dir", &c.Journal.Dir),
		Text("PRISM_LOG_LEVEL", "log_level", &c.LogLevel),
	})
	if err != nil {
		return nil, err
	}
	for _, set := range flags {
		set(c)
	}
	ck := &checks{from: from, problems: from.validate(c)}
	insecure := c.GetInsecureListen()
	ck.listeners(listener{"listen", c.GetListen(), insecure || certified(c.GetTls())},
		listener{"fleet_listen", c.GetFleetListen(), insecure || certified(c.GetFleetTls())}, listener{"http_listen", c.GetHttpListen(), insecure})
	ck.providers(c.GetCredentialProviders())
	if c.GetFleetAdvertise() != "" {
		ck.field("fleet_advertise", CheckEndpoint(c.GetFleetAdvertise()))
	}
	ck.endpoints("etcd.endpoints", c.GetEtcd().GetEndpoints())
	if c.GetPartitions()%32 != 0 {
		ck.field("partitions", fmt.Errorf("%d: want a multiple of 32", c.GetPartitions()))
	}
	for class, policy := range map[string]*configv1.ReleasePolicy{
		"additive": c.GetRelease().GetAdditive(), "scoped": c.GetRelease().GetScoped(),
		"shared": c.GetRelease().GetShared(), "rollback": c.GetRelease().GetRollback(),
	} {
		ck.policy("release."+class, policy)
	}
	return c, ck.err()
}

// LoadProxy loads the configuration of prism-proxy, complete: every field that has a default is set, except advertise,
// which only the listener knows when the port is 0. An empty path means that there is no file. flags come last and are
// checked like the rest.
func LoadProxy(path string, env Lookup, flags ...func(*bootstrapv1.ProxyConfig)) (*bootstrapv1.ProxyConfig, error) {
	c := &bootstrapv1.ProxyConfig{
		Listen:         "127.0.0.1:8980",
		HttpListen:     "127.0.0.1:9901",
		AdminEndpoints: []string{"127.0.0.1:18000"},
		StateDir:       "prism-proxy.state",
		LogLevel:       "info",
		DrainTimeout:   durationpb.New(30 * time.Second),
		ReleaseDelay:   durationpb.New(30 * time.Second),
	}
	from, err := load(path, c, env, []Override{
		Text("PRISM_PROXY_ID", "id", &c.Id),
		Port("PRISM_DATA_PORT", "listen", &c.Listen),
		Port("PRISM_PROXY_HTTP_PORT", "http_listen", &c.HttpListen),
		List("PRISM_ADMIN_ENDPOINT", "admin_endpoints", &c.AdminEndpoints),
		Switch("PRISM_PROXY_VALIDATOR", "validator", &c.Validator),
		Text("PRISM_LOG_LEVEL", "log_level", &c.LogLevel),
	})
	if err != nil {
		return nil, err
	}
	for _, set := range flags {
		set(c)
	}
	if c.GetId() == "" {
		if c.Id, err = os.Hostname(); err != nil {
			return nil, strictyaml.Errors{{File: path, Field: "id", Text: "give the proxy an id: the host has no name"}}
		}
	}
	ck := &checks{from: from, problems: from.validate(c)}
	ck.listeners(listener{"listen", c.GetListen(), Exposed(c)}, listener{"http_listen", c.GetHttpListen(), c.GetInsecureListen()})
	ck.providers(c.GetCredentialProviders())
	if c.GetAdvertise() != "" {
		ck.field("advertise", CheckEndpoint(c.GetAdvertise()))
	}
	ck.endpoints("admin_endpoints", c.GetAdminEndpoints())
	if len(c.GetAdminEndpoints()) == 0 {
		ck.field("admin_endpoints", fmt.Errorf("name at least one replica of prism-admin"))
	}
	return c, ck.err()
}

// checks collects what is wrong with single fields.
type checks struct {
	from     *source
	problems strictyaml.Errors
}

func (c *checks) field(name string, err error) {
	if err != nil {
		c.problems = append(c.problems, c.from.problem(name, err.Error()))
	}
}

// listener is an address to listen on, and the field that says it.
type listener struct {
	field, address string
	open           bool // others than this machine may reach it
}

// listeners refuses addresses that others can reach and that it is not said of, and one address for two.
func (c *checks) listeners(all ...listener) {
	first := map[string]string{}
	for _, l := range all {
		c.field(l.field, CheckLoopback(l.address, l.open))
		if other, taken := first[l.address]; taken && !strings.HasSuffix(l.address, ":0") {
			c.field(l.field, fmt.Errorf("%s is the address of %s already", l.address, other))
		}
		first[l.address] = l.field
	}
}

// policy refuses one that says how waves go and that there are none.
func (c *checks) policy(field string, p *configv1.ReleasePolicy) {
	if p.GetAtOnce() && !proto.Equal(p, &configv1.ReleasePolicy{AtOnce: true}) {
		c.field(field, errors.New("at_once passes the waves by, so nothing else of the policy can count: leave at_once or the rest out"))
	}
}

func (c *checks) endpoints(field string, addresses []string) {
	for i, a := range addresses {
		at := field
		if _, overridden := c.from.variables[field]; !overridden {
			at = fmt.Sprintf("%s[%d]", field, i)
		}
		c.field(at, CheckEndpoint(a))
	}
}

func (c *checks) err() error {
	if len(c.problems) == 0 {
		return nil
	}
	slices.SortFunc(c.problems, func(a, b *strictyaml.Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Field, b.Field))
	})
	return c.problems
}

// overlay copies what a file sets over defaults: groups of settings field by field; lists, maps and messages of other
// files, such as durations, whole.
func overlay(onto, from proto.Message) {
	to := onto.ProtoReflect()
	from.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		group := fd.Message() != nil && !fd.IsList() && !fd.IsMap() && fd.Message().ParentFile() == to.Descriptor().ParentFile()
		if group && to.Has(fd) {
			overlay(to.Mutable(fd).Message().Interface(), v.Message().Interface())
		} else {
			to.Set(fd, v)
		}
		return true
	})
}
