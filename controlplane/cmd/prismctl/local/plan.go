package local

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

//go:embed sample.yaml
var sampleFile []byte

// plan is a local Prism before it runs: what runs where.
type plan struct {
	dir     directory
	admin   Program
	proxies []Program
	nats    Program
	fleet   string // where proxies call the control plane
	taken   []string
	redis   string        // host:port of a Redis to register; empty for none
	waves   time.Duration // how long each wave of a change is held; 0 when changes go at once
	auth    *identity     // nil: nobody asks callers who they are
}

// makePlan chooses the ports.
func makePlan(dir directory, proxies int, redis string, waves time.Duration, auth bool) (*plan, error) {
	p := &plan{dir: dir, redis: redis, waves: waves}
	free := newPorts()
	p.admin = Program{Name: "prism-admin", Log: dir.file("prism-admin.log")}
	p.nats = Program{Name: "nats", Pid: os.Getpid()}
	for _, want := range []struct {
		what string
		port int
		into *string
	}{
		{"control plane", 8981, &p.admin.Address},
		{"proxies' way to the control plane", 18000, &p.fleet},
		{"control plane's HTTP", 8095, &p.admin.HTTP},
		{"NATS", 4222, &p.nats.Address},
	} {
		var err error
		if *want.into, err = free.usual(want.what, want.port); err != nil {
			return nil, err
		}
	}
	for i := range proxies {
		name := fmt.Sprintf("proxy-%d", i+1)
		proxy := Program{Name: name, Log: dir.file(name + ".log")}
		var err, httpErr error
		if i == 0 {
			proxy.Address, err = free.usual("first proxy", 8980)
			proxy.HTTP, httpErr = free.usual("first proxy's HTTP", 9901)
		} else {
			proxy.Address, err = free.next(8982)
			proxy.HTTP, httpErr = free.next(9902)
		}
		if err != nil {
			return nil, err
		}
		if httpErr != nil {
			return nil, httpErr
		}
		p.proxies = append(p.proxies, proxy)
	}
	if auth {
		var err error
		if p.auth, err = newIdentity(dir, free); err != nil {
			return nil, err
		}
	}
	p.taken = free.taken
	return p, nil
}

// programs are all programs, in the order in which they start.
func (p *plan) programs() []Program {
	all := append([]Program{p.admin, p.nats}, p.proxies...)
	if p.auth != nil {
		all = append(p.auth.programs(), all...)
	}
	return all
}

// write writes the programs' configurations, the context file and the sample.
func (p *plan) write() error {
	admin := &bootstrapv1.AdminConfig{
		Listen:            p.admin.Address,
		FleetListen:       p.fleet,
		HttpListen:        p.admin.HTTP,
		ReplicaId:         "local",
		Etcd:              &bootstrapv1.EtcdConfig{DataDir: p.dir.file("etcd")},
		Journal:           &bootstrapv1.JournalConfig{Dir: p.dir.file("journal")},
		MemberLease:       durationpb.New(5 * time.Second),
		PlacementDebounce: durationpb.New(time.Second),
		ShutdownTimeout:   durationpb.New(stopTimeout),
	}
	if p.waves > 0 {
		held := &configv1.ReleasePolicy{Soak: durationpb.New(p.waves)}
		admin.Release = &bootstrapv1.ReleaseConfig{Scoped: held, Shared: held}
	}
	context := target.Context{Admin: []string{p.admin.Address}}
	if p.auth != nil {
		p.auth.context(&context)
		if err := errors.Join(p.auth.admin(admin), p.auth.write()); err != nil {
			return err
		}
	}
	if err := p.config(p.admin.Name, admin); err != nil {
		return err
	}
	for _, proxy := range p.proxies {
		context.Data = append(context.Data, proxy.Address)
		config := &bootstrapv1.ProxyConfig{
			Id:             proxy.Name,
			Listen:         proxy.Address,
			HttpListen:     proxy.HTTP,
			AdminEndpoints: []string{p.fleet},
			StateDir:       p.dir.file(proxy.Name + ".state"),
			DrainTimeout:   durationpb.New(stopTimeout),
			ReleaseDelay:   durationpb.New(2 * time.Second),
		}
		if p.auth != nil {
			if err := p.auth.proxy(config); err != nil {
				return err
			}
		}
		if err := p.config(proxy.Name, config); err != nil {
			return err
		}
	}
	if err := os.WriteFile(p.dir.file("sample.yaml"), sampleFile, 0o600); err != nil {
		return err
	}
	return target.Write(p.dir.file("context.yaml"), target.File{Current: "local", Contexts: map[string]target.Context{"local": context}})
}

func (p *plan) config(name string, message proto.Message) error {
	data, err := strictyaml.Format(message)
	if err != nil {
		return err
	}
	return os.WriteFile(p.dir.file(name+".yaml"), data, 0o600)
}

// backends are the stores of a local Prism.
func (p *plan) backends() []*configv1.Backend {
	all := []*configv1.Backend{
		{Name: "local-memory", Type: "memory"},
		{Name: "local-sqlite", Type: "sqlite", Endpoints: []string{p.dir.file("data.db")}},
	}
	if p.redis != "" {
		all = append(all, &configv1.Backend{Name: "local-redis", Type: "redis", Endpoints: []string{p.redis}})
	}
	if p.auth != nil {
		all = append(all, p.auth.backend())
	}
	return all
}

// client says how to call a program, with a user's token or without.
func (p *plan) client(endpoint string, token client.TokenSource) (client.Config, error) {
	if p.auth == nil {
		return client.Config{Endpoints: []string{endpoint}}, nil
	}
	return p.auth.client(endpoint, token)
}

// binaries finds the programs beside prismctl itself.
func binaries() (admin, proxy string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", "", err
	}
	for name, into := range map[string]*string{"prism-admin": &admin, "prism-proxy": &proxy} {
		*into = filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(*into); err != nil {
			return "", "", fmt.Errorf("%s is not beside prismctl in %s: build it with make build", name, filepath.Dir(self))
		}
	}
	return admin, proxy, nil
}
