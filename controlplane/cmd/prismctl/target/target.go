// Package target finds the Prism that a command is for: from flags, the environment, a context file, or the local Prism
// of the working directory.
package target

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/settings"
)

// LocalContext is the context file that a local Prism writes, from the directory it was started in.
const LocalContext = ".prism/context.yaml"

// Context is one Prism: where to call it.
type Context struct {
	Admin    []string `yaml:"admin,omitempty"` // replicas of the control plane
	Data     []string `yaml:"data,omitempty"`  // proxies
	Identity `yaml:",inline"`

	assumed bool // nobody named it: the local Prism of this directory, or the default ports
}

// File is a context file.
type File struct {
	Current  string             `yaml:"current,omitempty"`
	Contexts map[string]Context `yaml:"contexts"`
}

// Flags are the flags that name a Prism.
type Flags struct {
	Admin, Data []string
	Context     string
	Identity    Identity
	// Timeout is how long one call may take.
	Timeout time.Duration

	term *terminal.Terminal
}

// New makes flags with nothing set.
func New(term *terminal.Terminal) *Flags { return &Flags{Timeout: 30 * time.Second, term: term} }

// Register adds the flags to a command and all below it.
func (f *Flags) Register(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringSliceVar(&f.Admin, "admin", nil, "host:port of the control plane, several separated by commas (environment: PRISM_ADMIN_ENDPOINT)")
	flags.StringSliceVar(&f.Data, "data", nil, "host:port of proxies, several separated by commas (environment: PRISM_DATA_ENDPOINT)")
	flags.StringVar(&f.Context, "context", "", "which Prism to use, of those in ~/.config/prism/context.yaml, or local (environment: PRISM_CONTEXT)")
	flags.StringVar(&f.Identity.CAFile, "ca-file", "", "authorities of the programs' certificates, PEM; with it connections are TLS (environment: PRISM_CA_FILE)")
	flags.StringVar(&f.Identity.CertFile, "cert-file", "", "certificate to show, PEM (environment: PRISM_CERT_FILE)")
	flags.StringVar(&f.Identity.KeyFile, "key-file", "", "its private key, PEM (environment: PRISM_KEY_FILE)")
	flags.StringVar(&f.Identity.TokenFile, "token-file", "", "file with the bearer token to show to proxies (environment: PRISM_TOKEN_FILE)")
	terminal.DurationVar(flags, &f.Timeout, "timeout", f.Timeout, "how long one call may take")
	_ = cmd.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { // fails only for an unknown flag
		file, _, err := f.file()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.Sorted(maps.Keys(file.Contexts)), cobra.ShellCompDirectiveNoFileComp
	})
}

// Admins are the addresses of the control plane, host:port.
func (f *Flags) Admins() ([]string, error) {
	c, err := f.resolve()
	return c.Admin, err
}

// Control connects to the control plane. The caller closes it.
func (f *Flags) Control() (*client.Control, error) {
	c, err := f.resolve()
	if err != nil {
		return nil, err
	}
	cfg, err := c.client(c.Admin)
	if err != nil {
		return nil, err
	}
	cfg.Token = nil // the control plane knows people by their certificates
	return client.DialControl(cfg)
}

// Client connects to the proxies. The caller closes it.
func (f *Flags) Client() (*client.Client, error) {
	c, err := f.resolve()
	if err != nil {
		return nil, err
	}
	cfg, err := c.client(c.Data)
	if err != nil {
		return nil, err
	}
	cfg.NoTokens = true // --once asks for one
	return client.Dial(cfg)
}

// WithControl calls the control plane within the time of one call. Its errors say what to do when nobody answered.
func (f *Flags) WithControl(ctx context.Context, call func(context.Context, *client.Control) error) error {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	return f.WithoutLimit(ctx, call)
}

// WithoutLimit is WithControl for as long as ctx lives.
func (f *Flags) WithoutLimit(ctx context.Context, call func(context.Context, *client.Control) error) error {
	c, err := f.Control()
	if err != nil {
		return err
	}
	defer c.Close()
	return f.explain(call(ctx, c), "the control plane", "--admin")
}

// WithData calls a proxy within the time of one call. Its errors say what to do when nobody answered.
func (f *Flags) WithData(ctx context.Context, call func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	return f.DataWithoutLimit(ctx, call)
}

// DataWithoutLimit is WithData for as long as ctx lives.
func (f *Flags) DataWithoutLimit(ctx context.Context, call func(context.Context, *client.Client) error) error {
	c, err := f.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f.explain(call(ctx, c), "a proxy", "--data")
}

func (f *Flags) explain(err error, who, flag string) error {
	if _, ok := status.FromError(err); !ok || err == nil {
		return err
	}
	got := faultgrpc.FromStatus(err)
	if got.Reason != "" && (got.Reason != fault.Method || flag == "--data") {
		return got
	}
	c, resolveErr := f.resolve()
	if resolveErr != nil {
		return got
	}
	at := c.Admin
	if flag == "--data" {
		at = c.Data
	}
	switch got.Code {
	case fault.Unavailable:
		hint := "name another"
		if c.assumed {
			hint = "start one on this machine with: prismctl local up\n  or name another"
		}
		return fault.Wrap(err, got.Code, "", fmt.Sprintf("%s does not answer at %s\n  %s with %s or --context", who, strings.Join(at, ", "), hint, flag))
	case fault.DeadlineExceeded:
		return fault.Wrap(err, got.Code, "", fmt.Sprintf("%s at %s did not answer within %v (--timeout)", who, strings.Join(at, ", "), f.Timeout))
	case fault.Unimplemented:
		return fault.Wrap(err, got.Code, "", fmt.Sprintf("%s does not know this call: is %s %s?", strings.Join(at, ", "), flag, who))
	}
	return got
}

// resolve finds the Prism: what flags and environment say, and for the rest the context.
func (f *Flags) resolve() (Context, error) {
	if f.Timeout <= 0 {
		return Context{}, terminal.Misusef("--timeout %v: want more than 0", f.Timeout)
	}
	c := Context{Admin: f.Admin, Data: f.Data, Identity: f.Identity}
	if f.Context == "" { // a context that this command line names is not another's because of what the shell exports
		c.Admin = firstList(c.Admin, split(f.term.Getenv("PRISM_ADMIN_ENDPOINT")))
		c.Data = firstList(c.Data, split(f.term.Getenv("PRISM_DATA_ENDPOINT")))
		c.Identity = c.Identity.or(Identity{
			CAFile: f.term.Getenv("PRISM_CA_FILE"), CertFile: f.term.Getenv("PRISM_CERT_FILE"), KeyFile: f.term.Getenv("PRISM_KEY_FILE"), TokenFile: f.term.Getenv("PRISM_TOKEN_FILE"),
		})
	}
	for _, e := range slices.Concat(c.Admin, c.Data) {
		if err := settings.CheckEndpoint(e); err != nil {
			return Context{}, terminal.Misuse{Err: err}
		}
	}
	if len(c.Admin) == 0 || len(c.Data) == 0 {
		named, err := f.named()
		if err != nil {
			return Context{}, err
		}
		for _, e := range slices.Concat(named.Admin, named.Data) {
			if err := settings.CheckEndpoint(e); err != nil {
				return Context{}, fmt.Errorf("context: %w", err)
			}
		}
		c.assumed = named.assumed && len(c.Admin) == 0 && len(c.Data) == 0
		c.Admin, c.Data = firstList(c.Admin, named.Admin), firstList(c.Data, named.Data)
		c.Identity = c.Identity.or(named.Identity)
	}
	return c, nil
}

// named returns the context that is asked for or current, then the local one, then the default ports of this machine.
func (f *Flags) named() (Context, error) {
	standard := Context{Admin: []string{"127.0.0.1:8981"}, Data: []string{"127.0.0.1:8980"}, assumed: true}
	file, path, err := f.file()
	if err != nil {
		return Context{}, err
	}
	name := cmp.Or(f.Context, f.term.Getenv("PRISM_CONTEXT"), file.Current)
	if c, ok := file.Contexts[name]; ok {
		return Context{Admin: firstList(c.Admin, standard.Admin), Data: firstList(c.Data, standard.Data), Identity: c.Identity.below(filepath.Dir(path))}, nil
	}
	if name != "" && name != "local" {
		return Context{}, terminal.Misusef("there is no context %q in %s; it has: %s; the local Prism of this directory is called local", name, path,
			cmp.Or(strings.Join(slices.Sorted(maps.Keys(file.Contexts)), ", "), "none"))
	}
	local, err := Read(LocalContext)
	if errors.Is(err, fs.ErrNotExist) {
		if name == "local" {
			return Context{}, fmt.Errorf("no local Prism was started in this directory; start one with: prismctl local up")
		}
		return standard, nil
	}
	if err != nil {
		return Context{}, err
	}
	c := local.Contexts["local"]
	c.assumed, c.Identity = true, c.Identity.below(filepath.Dir(LocalContext))
	return c, nil
}

// file reads the person's context file; without one there are no contexts.
func (f *Flags) file() (File, string, error) {
	path := f.term.Getenv("PRISM_CONTEXT_FILE")
	if path == "" {
		dir := f.term.Getenv("XDG_CONFIG_HOME")
		if dir == "" {
			dir = filepath.Join(f.term.Getenv("HOME"), ".config")
		}
		path = filepath.Join(dir, "prism", "context.yaml")
	}
	file, err := Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, path, nil
	}
	return file, path, err
}

// Read reads a context file strictly.
func Read(path string) (File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return File{}, err
	}
	var file File
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return File{}, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return file, nil
}

// Write writes a context file.
func Write(path string, file File) error {
	data, err := yaml.Marshal(file)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func firstList(all ...[]string) []string {
	for _, l := range all {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}
