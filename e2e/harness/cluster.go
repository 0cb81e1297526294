// Package harness starts the real programs for end-to-end tests and benches, on loopback ports and in directories of
// their own, and ends them with the test.
package harness

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// quickBackoff suits programs that tests stop and start again.
var quickBackoff = backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 300 * time.Millisecond}

// Options say what a cluster consists of. Zero values give one replica with embedded etcd and three proxies.
type Options struct {
	Admins int
	// Proxies is how many there are; less than 0 is none.
	Proxies int
	// Etcd is the number of real etcd nodes; 0 means embedded in the one replica.
	Etcd int
	// Debounce is how long a change of the fleet must last before partitions move; 0 means 200 ms.
	Debounce time.Duration
	// Lease is after what silence a proxy counts as gone; 0 means 2 s.
	Lease time.Duration
	// Partitions and Owners are those of the installation; 0 means 1,024 and 3.
	Partitions, Owners uint32
	// Backends are registered at the start, besides those that tests add.
	Backends []*configv1.Backend
	// Configure changes the replicas' configuration further; nil does not.
	Configure func(*bootstrapv1.AdminConfig)
	// ConfigureProxy changes the proxies' configuration further; nil does not.
	ConfigureProxy func(*bootstrapv1.ProxyConfig)
	// Validators is how many proxies more there are that only compile what they are sent.
	Validators int
	// Secure gives every program a certificate, and all connections are mTLS.
	Secure bool
	// Relays puts a relay on every link between programs, see Cluster.Links.
	Relays bool
	// Hosts gives every program a host of its own; nil runs all on loopback.
	Hosts *Hosts
	// AdminProgram and ProxyProgram are what is run; empty means what make build has built.
	AdminProgram, ProxyProgram string
	// Dial are further options of the test's connections.
	Dial []grpc.DialOption
	// Previous says that AdminProgram is of a build that creates an installation without being told.
	Previous bool
}

// Cluster is a running Prism.
type Cluster struct {
	Dir  string
	Etcd []*Process
	// EtcdEndpoints are host:port of the nodes; none when etcd is embedded.
	EtcdEndpoints []string
	Admins        []*Admin
	// Proxies are those that take calls, Validators the others.
	Proxies, Validators []*Proxy
	// Links are the relays, when Options.Relays asks for them.
	Links Links
	// Authority is that of Options.Secure.
	Authority *Authority

	t       T
	options Options
	fleet   []string // where proxies find the replicas, without relays
}

// Links are the relays of a cluster.
type Links struct {
	// Etcd is each replica's link to each etcd member.
	Etcd [][]*Relay
	// Fleet is each proxy's link to each replica; the validators' come after the others'.
	Fleet [][]*Relay
	// Replicas is the link to each replica from the others.
	Replicas []*Relay
	// Peers is the link to each proxy from the others.
	Peers []*Relay
	// Calls is the link to each proxy from the test.
	Calls []*Relay
}

// Set makes several links do the same.
func Set(f Fault, links ...*Relay) {
	for _, l := range links {
		l.Set(f)
	}
}

// Admin is one replica of the control plane.
type Admin struct {
	*Process
	Address, FleetAddress, HTTPAddress string
	Control                            controlv1.ControlPlaneClient
	Operator                           adminv1.AdminServiceClient
}

// Proxy is one proxy.
type Proxy struct {
	*Process
	ID, Address, HTTPAddress, StateDir string
	KeyValue                           datav1.KeyValueClient
}

// Root returns the module's directory.
func Root(t T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatalf("%v", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatalf("no go.mod above the working directory")
		}
		dir = up
	}
}

// Program returns the path of a program, which must have been built or fetched.
func Program(t T, path, how string) string {
	t.Helper()
	full := filepath.Join(Root(t), path)
	if _, err := os.Stat(full); err != nil {
		t.Fatalf("%s is missing; run: %s", path, how)
	}
	return full
}

// Start starts a cluster and waits until every proxy is ready.
func Start(t T, o Options) *Cluster {
	t.Helper()
	c := StartNoWait(t, o)
	c.WaitReady(60 * time.Second)
	c.WaitSettled(60 * time.Second)
	return c
}

// StartNoWait starts a cluster and returns at once.
func StartNoWait(t T, o Options) *Cluster {
	t.Helper()
	c := &Cluster{Dir: t.TempDir(), t: t, options: o}
	if o.Secure {
		c.Authority = newAuthority(t, c.Dir)
		c.Authority.Issue("tester", Tester, 0)
	}
	if o.Etcd > 0 {
		c.EtcdEndpoints = c.startEtcd(o.Etcd)
	}
	for i := range cmp.Or(o.Admins, 1) {
		c.fleet = append(c.fleet, c.free(fmt.Sprintf("admin-%d", i)))
	}
	for i := range c.fleet {
		c.startAdmin(i)
	}
	for range cmp.Or(o.Proxies, 3) {
		c.Join()
	}
	for i := range o.Validators {
		c.Validators = append(c.Validators, c.startProxy(fmt.Sprintf("validator-%d", i), true))
	}
	return c
}

// Join starts one proxy more and returns it at once.
func (c *Cluster) Join() *Proxy {
	c.t.Helper()
	p := c.startProxy(fmt.Sprintf("proxy-%d", len(c.Proxies)), false)
	c.Proxies = append(c.Proxies, p)
	return p
}

// free is an address for a program to listen on.
func (c *Cluster) free(program string) string {
	c.t.Helper()
	if c.options.Hosts != nil {
		return c.options.Hosts.address(program)
	}
	return FreeAddress(c.t)
}

// start starts a program of the cluster, on its host when it has one.
func (c *Cluster) start(name, path string, args ...string) *Process {
	c.t.Helper()
	if c.options.Hosts == nil {
		return start(c.t, c.Dir, name, path, nil, args...)
	}
	ip, err := exec.LookPath("ip")
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	return start(c.t, c.Dir, name, ip, nil, append([]string{"netns", "exec", c.options.Hosts.of(name).namespace, path}, args...)...)
}

// relayed puts a relay before an address, when the cluster has relays.
func (c *Cluster) relayed(links *[]*Relay, address string) string {
	if !c.options.Relays {
		return address
	}
	r := NewRelay(c.t, address)
	*links = append(*links, r)
	return r.Address
}

// WaitSettled waits until every proxy that runs owns partitions, none move, and all go by the newest assignment.
func (c *Cluster) WaitSettled(within time.Duration) {
	c.t.Helper()
	Eventually(c.t, within, "partitions settled", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		out, err := c.Admin().Operator.ListProxies(ctx, &adminv1.ListProxiesRequest{PageSize: 1000})
		if err != nil {
			return err
		}
		if out.GetMoving() {
			return errors.New("they move")
		}
		owning := map[string]bool{}
		for _, p := range out.GetProxies() {
			owning[p.GetMember().GetId()] = p.GetOwned() > 0
		}
		for _, p := range c.Proxies {
			if !p.Running() {
				continue
			}
			if !owning[p.ID] {
				return fmt.Errorf("%s owns none", p.ID)
			}
			var dump struct{ Epoch uint64 }
			if err := json.Unmarshal([]byte(c.Get(p.HTTPAddress, "/config_dump")), &dump); err != nil {
				return err
			}
			if dump.Epoch != out.GetEpoch() {
				return fmt.Errorf("%s goes by epoch %d, not %d", p.ID, dump.Epoch, out.GetEpoch())
			}
		}
		return nil
	})
}

func (c *Cluster) startEtcd(n int) (endpoints []string) {
	etcd := Program(c.t, ".cache/bin/etcd", "scripts/fetch etcd")
	peers := make([]string, n)
	for i := range peers {
		peers[i] = fmt.Sprintf("etcd%d=http://%s", i, c.free(fmt.Sprintf("etcd%d", i)))
	}
	for _, peer := range peers {
		name, url, _ := strings.Cut(peer, "=")
		client := "http://" + c.free(name)
		c.Etcd = append(c.Etcd, c.start(name, etcd,
			"--name", name, "--data-dir", filepath.Join(c.Dir, name), "--heartbeat-interval", "50", "--election-timeout", "500",
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", url, "--initial-advertise-peer-urls", url,
			"--initial-cluster", strings.Join(peers, ","), "--initial-cluster-state", "new", "--log-level", "warn"))
		endpoints = append(endpoints, strings.TrimPrefix(client, "http://"))
	}
	for _, e := range endpoints {
		Eventually(c.t, 30*time.Second, "etcd at "+e, func() error { return get("http://" + e + "/health") })
	}
	return endpoints
}

func (c *Cluster) startAdmin(i int) {
	o, name := c.options, fmt.Sprintf("admin-%d", i)
	a := &Admin{Address: c.free(name), FleetAddress: c.fleet[i], HTTPAddress: c.free(name)}
	var etcd []string
	var links []*Relay
	for _, member := range c.EtcdEndpoints {
		etcd = append(etcd, c.relayed(&links, member))
	}
	c.Links.Etcd = append(c.Links.Etcd, links)
	settings := &bootstrapv1.AdminConfig{
		Listen: a.Address, FleetListen: a.FleetAddress, HttpListen: a.HTTPAddress, ReplicaId: name,
		Etcd:              &bootstrapv1.EtcdConfig{Endpoints: etcd, DataDir: filepath.Join(c.Dir, name+".etcd")},
		Partitions:        o.Partitions,
		Owners:            o.Owners,
		MemberLease:       orDuration(o.Lease, 2*time.Second),
		PlacementDebounce: orDuration(o.Debounce, 200*time.Millisecond),
		InitialBackends:   o.Backends,
		InsecureListen:    o.Hosts != nil,
	}
	if c.Authority != nil {
		settings.Tls = c.Authority.listener("admin", name)
		settings.FleetTls = settings.Tls
	}
	if o.Relays {
		settings.FleetAdvertise = c.relayed(&c.Links.Replicas, a.FleetAddress)
	}
	if o.Configure != nil {
		o.Configure(settings)
	}
	config := c.write(name, settings)
	program := o.AdminProgram
	if program == "" {
		program = Program(c.t, "bin/prism-admin", "make build")
	}
	args := []string{"--config", config}
	if i == 0 && len(etcd) > 0 && !o.Previous {
		args = append(args, "--create")
	}
	a.Process = c.start(name, program, args...)
	conn := c.Dial(a.Address)
	a.Control, a.Operator = controlv1.NewControlPlaneClient(conn), adminv1.NewAdminServiceClient(conn)
	c.Admins = append(c.Admins, a)
}

func (c *Cluster) startProxy(id string, validator bool) *Proxy {
	o := c.options
	p := &Proxy{ID: id, Address: c.free(id), HTTPAddress: c.free(id), StateDir: filepath.Join(c.Dir, id+".state")}
	var admins []string
	var links []*Relay
	for _, admin := range c.fleet {
		admins = append(admins, c.relayed(&links, admin))
	}
	c.Links.Fleet = append(c.Links.Fleet, links)
	settings := &bootstrapv1.ProxyConfig{
		Id: id, Listen: p.Address, HttpListen: p.HTTPAddress, AdminEndpoints: admins, StateDir: p.StateDir,
		DrainTimeout: durationpb.New(5 * time.Second), ReleaseDelay: durationpb.New(time.Second), Validator: validator,
		InsecureListen: o.Hosts != nil,
	}
	if c.Authority != nil {
		settings.Tls = c.Authority.listener("proxy", id)
	}
	calls := p.Address
	if o.Relays && !validator {
		settings.Advertise = c.relayed(&c.Links.Peers, p.Address)
		calls = c.relayed(&c.Links.Calls, p.Address)
	}
	if o.ConfigureProxy != nil {
		o.ConfigureProxy(settings)
	}
	config := c.write(id, settings)
	program := o.ProxyProgram
	if program == "" {
		program = Program(c.t, "bin/prism-proxy", "make build")
	}
	p.Process = c.start(id, program, "--config", config)
	p.KeyValue = datav1.NewKeyValueClient(c.Dial(calls))
	return p
}

// write keeps a program's configuration; JSON is YAML too.
func (c *Cluster) write(name string, config proto.Message) string {
	c.t.Helper()
	data, err := protojson.Marshal(config)
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	path := filepath.Join(c.Dir, name+".yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return path
}

// Dial connects to one of the programs; the connection ends with the test.
func (c *Cluster) Dial(address string) *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, append([]grpc.DialOption{
		c.credentials(), grpc.WithConnectParams(grpc.ConnectParams{Backoff: quickBackoff, MinConnectTimeout: time.Second}),
	}, c.options.Dial...)...)
	if err != nil {
		c.t.Fatalf("%s: %v", address, err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// WaitReady waits until every program that runs says that it is ready.
func (c *Cluster) WaitReady(within time.Duration) {
	c.t.Helper()
	for i, a := range c.Admins {
		if a.Running() {
			Eventually(c.t, within, fmt.Sprintf("admin-%d ready", i), a.Ready)
			a.created()
		}
	}
	for _, p := range c.Proxies {
		if p.Running() {
			Eventually(c.t, within, p.ID+" ready", func() error { return p.Ready() })
		}
	}
}

// Ready returns nil when the proxy says that it is ready, and what it says otherwise.
func (p *Proxy) Ready() error { return get("http://" + p.HTTPAddress + "/readyz") }

// Ready returns nil when the replica says that it is ready, and what it says otherwise.
func (a *Admin) Ready() error { return get("http://" + a.HTTPAddress + "/readyz") }

// Get returns what one of the programs answers over HTTP.
func (c *Cluster) Get(address, path string) string {
	c.t.Helper()
	body, err := fetch("http://" + address + path)
	if err != nil {
		c.t.Fatalf("%s: %v", path, err)
	}
	return body
}

// Apply creates or updates namespaces as one change through the first replica that runs, and waits until every owner
// serves each of them.
func (c *Cluster) Apply(ctx context.Context, requests ...*configv1.NamespaceRequest) *controlv1.ApplyNamespacesResponse {
	c.t.Helper()
	in := &controlv1.ApplyNamespacesRequest{Note: &controlv1.ChangeNote{Author: "e2e"}}
	for _, r := range requests {
		in.Changes = append(in.Changes, &controlv1.NamespaceChange{Request: r})
	}
	out, err := c.Admin().Control.ApplyNamespaces(ctx, in)
	if err != nil {
		c.t.Fatalf("apply: %v", err)
	}
	for _, r := range requests {
		c.WaitLive(ctx, r.GetNamespace(), out.GetSnapshotVersion())
	}
	return out
}

// WaitLive waits until every owner of a namespace serves a snapshot.
func (c *Cluster) WaitLive(ctx context.Context, namespace string, snapshot uint64) {
	c.t.Helper()
	stream, err := c.Admin().Control.WatchNamespaceStatus(ctx, &controlv1.WatchNamespaceStatusRequest{Namespace: namespace, UntilSnapshot: snapshot})
	if err != nil {
		c.t.Fatalf("status of %s: %v", namespace, err)
	}
	var last *configv1.NamespaceStatus
	for {
		in, err := stream.Recv()
		if err == io.EOF && last.GetLive() {
			return
		}
		if err != nil {
			c.t.Fatalf("status of %s: %v; last: %v", namespace, err, last)
		}
		last = in.GetStatus()
	}
}

// Admin returns the first replica that runs.
func (c *Cluster) Admin() *Admin {
	c.t.Helper()
	for _, a := range c.Admins {
		if a.Running() {
			return a
		}
	}
	c.t.Fatalf("no replica runs")
	return nil
}

func orDuration(d, otherwise time.Duration) *durationpb.Duration {
	if d == 0 {
		d = otherwise
	}
	return durationpb.New(d)
}

func get(url string) error {
	_, err := fetch(url)
	return err
}

func fetch(url string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}
