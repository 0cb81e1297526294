package target_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// TestThePrismIsFound looks at the address that an unanswered call names.
func TestThePrismIsFound(t *testing.T) {
	const contexts = "current: staging\ncontexts:\n  staging: {admin: ['127.0.0.1:2']}\n  prod: {admin: ['127.0.0.1:3', '127.0.0.1:4']}\n"
	const local = "contexts:\n  local: {admin: ['127.0.0.1:5']}\n"
	for name, tc := range map[string]struct {
		file, local string
		env         map[string]string
		flags       target.Flags
		want        string
	}{
		"a flag is first":                      {file: contexts, env: map[string]string{"PRISM_ADMIN_ENDPOINT": "127.0.0.1:9"}, flags: target.Flags{Admin: []string{"127.0.0.1:1"}}, want: "answer at 127.0.0.1:1\n"},
		"then the environment":                 {file: contexts, env: map[string]string{"PRISM_ADMIN_ENDPOINT": "127.0.0.1:9"}, want: "answer at 127.0.0.1:9\n"},
		"unless a flag names a context":        {file: contexts, env: map[string]string{"PRISM_ADMIN_ENDPOINT": "127.0.0.1:9"}, flags: target.Flags{Context: "prod"}, want: "answer at 127.0.0.1:3, 127.0.0.1:4\n"},
		"then the context that is named":       {file: contexts, local: local, flags: target.Flags{Context: "prod"}, want: "answer at 127.0.0.1:3, 127.0.0.1:4\n"},
		"or by the environment":                {file: contexts, local: local, env: map[string]string{"PRISM_CONTEXT": "prod"}, want: "answer at 127.0.0.1:3, 127.0.0.1:4\n"},
		"then the current one":                 {file: contexts, local: local, want: "answer at 127.0.0.1:2\n"},
		"then the local one of this directory": {local: local, want: "answer at 127.0.0.1:5\n  start one on this machine with: prismctl local up\n"},
		"the local one by its name":            {file: contexts, local: local, flags: target.Flags{Context: "local"}, want: "answer at 127.0.0.1:5\n"},
		"no local one":                         {flags: target.Flags{Context: "local"}, want: "no local Prism was started in this directory"},
		"an unknown context":                   {file: contexts, flags: target.Flags{Context: "moon"}, want: `there is no context "moon"`},
		"which there are":                      {file: contexts, flags: target.Flags{Context: "moon"}, want: "it has: prod, staging"},
		"an unknown key in the file":           {file: "contextz: {}\n", want: "field contextz not found"},
		"an address that is none":              {flags: target.Flags{Admin: []string{"localhost"}}, want: "want host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			home := t.TempDir()
			write(t, filepath.Join(home, "prism", "context.yaml"), tc.file)
			write(t, target.LocalContext, tc.local)
			env := map[string]string{"XDG_CONFIG_HOME": home}
			for k, v := range tc.env {
				env[k] = v
			}
			f := target.New(&terminal.Terminal{Getenv: func(name string) string { return env[name] }})
			f.Admin, f.Context, f.Timeout = tc.flags.Admin, tc.flags.Context, 10*time.Second
			err := f.WithControl(t.Context(), func(ctx context.Context, c *client.Control) error {
				_, err := c.Admin.GetOwners(ctx, &adminv1.GetOwnersRequest{})
				return err
			})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestOwnErrorsAreLeftAlone(t *testing.T) {
	f := target.New(&terminal.Terminal{Getenv: func(string) string { return "" }})
	f.Admin, f.Data = []string{"127.0.0.1:1"}, []string{"127.0.0.1:1"}
	for want, err := range map[string]error{
		"cannot read it": os.ErrInvalid,
		"changed":        faultgrpc.Status(fault.New(fault.Conflict, fault.Changed, "changed"), "").Err(),
	} {
		got := f.WithControl(t.Context(), func(context.Context, *client.Control) error { return err })
		if err == os.ErrInvalid && got != err || err != os.ErrInvalid && got.Error() != want {
			t.Errorf("%v became %v", err, got)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if text == "" {
		return
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPagesAreJoined(t *testing.T) {
	for name, tc := range map[string]struct {
		limit uint32
		sizes []uint32 // that are asked for
		names []string
		token string
	}{
		"to the end":            {limit: 0, sizes: []uint32{1000, 1000, 1000, 1000}, names: []string{"a", "b", "c"}},
		"up to the limit":       {limit: 2, sizes: []uint32{2, 2, 1}, names: []string{"a", "b"}, token: "3"},
		"with more than enough": {limit: 5000, sizes: []uint32{1000, 1000, 1000, 1000}, names: []string{"a", "b", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			var sizes []uint32
			all, err := target.Pages(tc.limit, func(token string, size uint32) (*controlv1.ListNamespacesResponse, error) {
				sizes = append(sizes, size)
				return map[string]*controlv1.ListNamespacesResponse{
					"":  {NextPageToken: "1", TotalCount: 3}, // a page may be empty
					"1": {NextPageToken: "2", TotalCount: 3, Namespaces: []*controlv1.NamespaceSummary{{Namespace: "a"}}},
					"2": {NextPageToken: "3", TotalCount: 3, Namespaces: []*controlv1.NamespaceSummary{{Namespace: "b"}}},
					"3": {TotalCount: 3, Namespaces: []*controlv1.NamespaceSummary{{Namespace: "c"}}},
				}[token], nil
			})
			var names []string
			for _, n := range all.GetNamespaces() {
				names = append(names, n.GetNamespace())
			}
			if err != nil || !slices.Equal(names, tc.names) || !slices.Equal(sizes, tc.sizes) || all.GetNextPageToken() != tc.token || all.GetTotalCount() != 3 {
				t.Errorf("%v, sizes %v, token %q, %v", all, sizes, all.GetNextPageToken(), err)
			}
		})
	}
}
