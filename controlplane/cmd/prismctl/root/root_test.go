package root_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/root"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// result is what a command line came to.
type result struct {
	out, err string
	code     int
}

func run(t *testing.T, p *peer, in string, tty bool, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	env := map[string]string{"PRISM_AUTHOR": "tester", "HOME": t.TempDir()}
	if p != nil {
		env["PRISM_ADMIN_ENDPOINT"], env["PRISM_DATA_ENDPOINT"] = p.address, p.address
	}
	code := root.Run(t.Context(), &terminal.Terminal{In: strings.NewReader(in), Out: &out, Err: &err, OutTTY: tty, ErrTTY: tty,
		Getenv: func(name string) string { return env[name] }}, args)
	text := strings.NewReplacer("\x1b", "<ESC>", "\r", "<CR>")
	stderr := text.Replace(err.String())
	if p != nil {
		stderr = strings.ReplaceAll(stderr, p.address, "PEER")
	}
	return result{out: text.Replace(out.String()), err: stderr, code: code}
}

const request = `namespace: user-profiles
team: accounts
pattern: keyvalue
needs: {durability: strong, ttl: 24h}
`

func TestOutputs(t *testing.T) {
	used := map[string]bool{}
	for name, tc := range map[string]struct {
		args string
		in   string
		tty  bool
	}{
		"namespace-plan":                 {args: "namespace plan -f -", in: request},
		"namespace-plan-refused":         {args: "namespace plan -f -", in: strings.Replace(request, "user-profiles", "one-too-many", 1)},
		"namespace-apply-shrinks":        {args: "namespace apply -f -", in: strings.Replace(request, "user-profiles", "shrinks", 1)},
		"namespace-apply-too-fast":       {args: "namespace apply -f -", in: strings.Replace(request, "user-profiles", "too-fast", 1)},
		"help":                           {args: "--help"},
		"namespace-plan-broken":          {args: "namespace plan -f -", in: "namespace: X\nteam: accounts\npattern: keyvalue\nneeds: {ttl: 24h, durabilty: strong}\n"},
		"namespace-plan-invalid":         {args: "namespace plan -f -", in: "namespace: X\nteam: accounts\n"},
		"namespace-apply":                {args: "namespace apply -f -", in: request},
		"namespace-apply-wait":           {args: "namespace apply -f - --wait", in: request},
		"namespace-apply-wait-tty":       {args: "namespace apply -f - --wait", in: request, tty: true},
		"namespace-apply-refused":        {args: "namespace apply -f -", in: "namespace: no-backend\nteam: accounts\npattern: keyvalue\nneeds:\n  write_rps: 500\n"},
		"namespace-list":                 {args: "namespace list"},
		"namespace-list-json":            {args: "namespace list -o json"},
		"namespace-list-yaml":            {args: "namespace list -o yaml"},
		"namespace-get":                  {args: "namespace get user-profiles"},
		"namespace-get-not-loaded":       {args: "namespace get not-loaded"},
		"namespace-apply-reserved":       {args: "namespace apply -f -", in: strings.Replace(request, "user-profiles", "kept-for-others", 1)},
		"namespace-get-nobody":           {args: "namespace get nobody"},
		"namespace-status":               {args: "namespace status user-profiles"},
		"namespace-status-wait":          {args: "namespace status user-profiles --wait"},
		"namespace-status-wait-nobody":   {args: "namespace status orders --wait"},
		"misuse-watch-and-wait":          {args: "namespace status user-profiles --wait --watch"},
		"namespace-status-watch-goes-on": {args: "namespace status at-one-that-stops --watch"},
		"namespace-status-watch":         {args: "namespace status user-profiles --watch"},
		"namespace-export":               {args: "namespace export user-profiles"},
		"namespace-history":              {args: "namespace history user-profiles"},
		"namespace-history-nobody":       {args: "namespace history nobody"},
		"namespace-rollback":             {args: "namespace rollback user-profiles --to 3"},
		"namespace-delete":               {args: "namespace delete user-profiles"},
		"namespace-delete-in-waves":      {args: "namespace delete slowly-drained"},
		"kv-get":                         {args: "kv get user-profiles alice name"},
		"kv-get-tty":                     {args: "kv get user-profiles alice name", tty: true},
		"kv-get-binary-tty":              {args: "kv get user-profiles alice photo", tty: true},
		"kv-get-json":                    {args: "kv get user-profiles alice photo -o json"},
		"kv-get-absent":                  {args: "kv get user-profiles bob"},
		"kv-put":                         {args: "kv put user-profiles alice name Alice"},
		"kv-put-unknown":                 {args: "kv put slow alice name Alice"},
		"kv-put-bad-hex":                 {args: "kv put user-profiles zz value --encoding hex"},
		"kv-delete":                      {args: "kv delete user-profiles alice name"},
		"kv-delete-all":                  {args: "kv delete user-profiles alice --all"},
		"kv-scan":                        {args: "kv scan user-profiles alice"},
		"kv-scan-limit":                  {args: "kv scan user-profiles alice --limit 1"},
		"kv-ids":                         {args: "kv ids user-profiles"},
		"kv-touch-unknown-call":          {args: "kv touch user-profiles alice name --ttl 1h"},
		"kv-describe":                    {args: "kv describe user-profiles"},
		"snapshot-list":                  {args: "snapshot list"},
		"snapshot-show":                  {args: "snapshot show 7"},
		"snapshot-diff":                  {args: "snapshot diff 6 7"},
		"snapshot-rollback":              {args: "snapshot rollback 3"},
		"snapshot-bad-number":            {args: "snapshot show zero"},
		"backend-list":                   {args: "backend list"},
		"backend-get":                    {args: "backend get local-sqlite"},
		"backend-get-taken-back":         {args: "backend get redis-main"},
		"backend-status":                 {args: "backend status local-sqlite"},
		"backend-apply":                  {args: "backend apply -f -", in: "name: local-sqlite\ntype: sqlite\nendpoints: [data.db]\n"},
		"backend-apply-broken":           {args: "backend apply -f -", in: "name: local-sqlite\ntyp: sqlite\n"},
		"backend-delete-in-use":          {args: "backend delete local-sqlite"},
		"fleet-list":                     {args: "fleet list"},
		"fleet-show":                     {args: "fleet show proxy-1"},
		"fleet-show-then":                {args: "fleet show proxy-1 --at 2026-11-22T11:00:00Z"},
		"fleet-show-then-version":        {args: "fleet show proxy-1 --at 2026-11-22T11:00:00Z -n user-profiles"},
		"fleet-show-then-unknown":        {args: "fleet show proxy-1 --at 2026-11-22T11:00:00Z -n orders"},
		"fleet-show-then-absent":         {args: "fleet show proxy-1 --at 2026-11-22T11:00:00Z -n nobody"},
		"fleet-show-bad-time":            {args: "fleet show proxy-1 --at yesterday"},
		"fleet-show-now-of-one":          {args: "fleet show proxy-1 -n user-profiles"},
		"fleet-owners":                   {args: "fleet owners user-profiles"},
		"namespace-apply-taken-back":     {args: "namespace apply -f - --wait", in: strings.Replace(request, "user-profiles", "taken-back", 1)},
		"namespace-apply-aborted":        {args: "namespace apply -f - --wait", in: strings.Replace(request, "user-profiles", "aborted", 1)},
		"namespace-apply-taken-away":     {args: "namespace apply -f - --wait", in: strings.Replace(request, "user-profiles", "orders", 1)},
		"release-list":                   {args: "release list"},
		"release-status":                 {args: "release status"},
		"release-status-ended":           {args: "release status 41"},
		"release-status-none":            {args: "release status 7"},
		"release-status-json":            {args: "release status 41 -o json"},
		"release-watch":                  {args: "release watch 42"},
		"release-watch-tty":              {args: "release watch 42", tty: true},
		"release-watch-done":             {args: "release watch 40"},
		"release-watch-rolled-back":      {args: "release watch 41"},
		"release-pause":                  {args: "release pause 42"},
		"release-confirm":                {args: "release confirm 42"},
		"namespace-apply-in-waves":       {args: "namespace apply -f -", in: strings.Replace(request, "user-profiles", "orders", 1)},
		"namespace-apply-to-confirm":     {args: "namespace apply -f - --confirm-within 10m", in: strings.Replace(request, "user-profiles", "orders", 1)},
		"release-abort-which":            {args: "release abort"},
		"misuse-push-reason":             {args: "release push 42"},
		"misuse-at-once":                 {args: "snapshot rollback 3 --at-once"},
		"misuse-confirm-within":          {args: "snapshot rollback 3 --confirm-within 10ms"},
		"misuse-release-number":          {args: "release abort newest"},
		"misuse-command":                 {args: "namespace frobnicate"},
		"misuse-command-with-flags":      {args: "namespace aply -f user-profiles.yaml"},
		"misuse-no-such-file":            {args: "namespace apply -f no-such.yaml"},
		"misuse-directory":               {args: "backend apply -f testdata"},
		"misuse-no-such-value":           {args: "kv put user-profiles alice @no-such"},
		"misuse-address":                 {args: "namespace list --admin nonsense"},
		"misuse-local":                   {args: "local up --proxies 0"},
		"misuse-flag":                    {args: "namespace list --frobnicate"},
		"misuse-arguments":               {args: "kv get user-profiles"},
		"misuse-format":                  {args: "namespace list -o xml"},
		"misuse-required":                {args: "namespace plan"},
		"misuse-group":                   {args: "kv put user-profiles alice v --if-absent --if-present"},
		"misuse-ttl":                     {args: "kv put user-profiles alice v --ttl 0s"},
		"misuse-duration":                {args: "namespace list --timeout 5"},
		"misuse-timeout":                 {args: "namespace list --timeout 0s"},
		"misuse-short-version":           {args: "namespace delete user-profiles --version 0123456789ab"},
		"misuse-version-of-many":         {args: "namespace apply -f - --version 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", in: request + "---\n" + strings.Replace(request, "user-", "other-", 1)},
		"namespace-plan-backends":        {args: "namespace plan -f -", in: "name: local-sqlite\ntype: sqlite\nendpoints: [data.db]\n"},
		"backend-apply-namespaces":       {args: "backend apply -f -", in: request},
	} {
		used[name+".golden"] = true
		t.Run(name, func(t *testing.T) {
			r := run(t, serve(t), tc.in, tc.tty, strings.Fields(tc.args)...)
			got := fmt.Sprintf("$ prismctl %s\n%s", tc.args, r.out)
			if r.err != "" {
				got += "--- standard error\n" + r.err
			}
			got += fmt.Sprintf("--- exit code %d\n", r.code)
			golden(t, name, got)
		})
	}
	files, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !used[filepath.Base(f)] {
			t.Errorf("%s belongs to no case", f)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("differs from %s (-want +got; write it anew with -update):\n%s", path, diff)
	}
}

func TestCommandsAskForWhatTheLineSays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte{0, 0xff}, 0o600); err != nil {
		t.Fatal(err)
	}
	note := &controlv1.ChangeNote{Author: "tester", Message: "because"}
	version := strings.Repeat("0123456789abcdef", 4)
	for name, tc := range map[string]struct {
		args string
		in   string
		want proto.Message
	}{
		"a value from a file":    {"kv put ns-a id key @" + file, "", &datav1.PutRequest{Namespace: "ns-a", Id: []byte("id"), Key: []byte("key"), Value: []byte{0, 0xff}}},
		"a value from the input": {"kv put ns-a id -", "\x00in", &datav1.PutRequest{Namespace: "ns-a", Id: []byte("id"), Value: []byte("\x00in")}},
		"an id in hex":           {"kv get ns-a 0xff00 --encoding hex", "", &datav1.GetRequest{Namespace: "ns-a", Id: []byte{0xff, 0}}},
		"an id in base64":        {"kv get ns-a /w== --encoding base64", "", &datav1.GetRequest{Namespace: "ns-a", Id: []byte{0xff}}},
		"a condition":            {"kv delete ns-a id --if-version AAE=", "", &datav1.DeleteRequest{Namespace: "ns-a", Id: []byte("id"), Condition: &datav1.Condition{Is: &datav1.Condition_Version{Version: []byte{0, 1}}}}},
		"a write if absent":      {"kv put ns-a id v --if-absent", "", &datav1.PutRequest{Namespace: "ns-a", Id: []byte("id"), Value: []byte("v"), Condition: &datav1.Condition{Is: &datav1.Condition_Absent{Absent: true}}}},
		"a range of a scan":      {"kv scan ns-a id --prefix p --start a --end b --reverse --keys-only --limit 1", "", &datav1.ScanRequest{Namespace: "ns-a", Id: []byte("id"), Prefix: []byte("p"), Start: []byte("a"), End: []byte("b"), Reverse: true, KeysOnly: true, Limit: 1}},
		"an apply of what was read": {"namespace apply -f - --version " + version + " -m because", request, &controlv1.ApplyNamespacesRequest{Note: note,
			Changes: []*controlv1.NamespaceChange{{Version: version, Request: &configv1.NamespaceRequest{Namespace: "user-profiles", Team: "accounts", Pattern: "keyvalue",
				Needs: &configv1.Needs{Durability: configv1.Durability_DURABILITY_STRONG, Ttl: durationpb.New(24 * time.Hour)}}}}}},
		"who deletes and why":      {"namespace delete ns-a --version " + version + " -m because", "", &controlv1.DeleteNamespaceRequest{Namespace: "ns-a", Version: version, Note: note}},
		"a rollback of one":        {"namespace rollback ns-a --to 3 -m because", "", &adminv1.RollbackSnapshotRequest{ToVersion: 3, Namespace: "ns-a", Note: note}},
		"a rollback of everything": {"snapshot rollback 3 --allow-shrink -m because", "", &adminv1.RollbackSnapshotRequest{ToVersion: 3, AllowShrink: true, Note: note, Release: &controlv1.ReleaseOptions{AllowShrink: true}}},
		"a change at once": {"namespace delete ns-a --at-once --allow-shrink -m because", "", &controlv1.DeleteNamespaceRequest{Namespace: "ns-a", Note: note,
			Release: &controlv1.ReleaseOptions{AtOnce: true, AllowShrink: true}}},
		"a change to be confirmed": {"backend apply -f - --confirm-within 10m -m because", "name: a-b\ntype: memory\n", &adminv1.ApplyBackendsRequest{Note: note,
			Changes: []*adminv1.BackendChange{{Backend: &configv1.Backend{Name: "a-b", Type: "memory"}}}, Release: &controlv1.ReleaseOptions{ConfirmWithin: durationpb.New(10 * time.Minute)}}},
		"a lease of days":                {"namespace reserve ns-a --team accounts --lease 30d -m because", "", &controlv1.ReserveNameRequest{Namespace: "ns-a", Team: "accounts", Lease: durationpb.New(30 * 24 * time.Hour), Note: note}},
		"a push":                         {"release push 42 --reason because", "", &adminv1.ControlReleaseRequest{Snapshot: 42, Action: adminv1.ReleaseAction_RELEASE_ACTION_PUSH, Note: note}},
		"a confirmation of the only one": {"release confirm --reason because", "", &adminv1.ControlReleaseRequest{Action: adminv1.ReleaseAction_RELEASE_ACTION_CONFIRM, Note: note}},
		"a diff to the newest":           {"snapshot diff 3", "", &adminv1.DiffSnapshotsRequest{FromVersion: 3, PageSize: 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t)
			run(t, p, tc.in, false, strings.Fields(tc.args)...)
			if len(p.asked) == 0 {
				t.Fatal("nothing was asked")
			}
			if diff := cmp.Diff(tc.want, p.asked[0], protocmp.Transform(), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestErrorsAreJSONWhereResultsAre(t *testing.T) {
	for name, tc := range map[string]struct{ args, in, want string }{
		"of an answer":    {"namespace apply -f - -o json", strings.Replace(request, "user-profiles", "too-fast", 1), `{"error":"team accounts may change 60 namespaces a minute: try again in 1.5s","exit_code":1,"code":"RESOURCE_EXHAUSTED","reason":"QUOTA","metadata":{"request_id":"ID"},"retry_after_seconds":1.5}`},
		"of the line":     {"namespace get -o json", "", `{"error":"accepts 1 arg(s), received 0; usage: prismctl namespace get NAME [flags]","exit_code":2}`},
		"of what is seen": {"release watch 41 -o json", "", `{"error":"release 42 did not come to every owner: rolled back: 3.2 % of 1,250 calls failed","exit_code":3}`},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, serve(t), tc.in, false, strings.Fields(tc.args)...)
			lines := strings.Split(strings.TrimSuffix(r.err, "\n"), "\n")
			if got := regexp.MustCompile(`[0-9a-f]{32}`).ReplaceAllString(lines[len(lines)-1], "ID"); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestADefectIsToldByItsRequestID(t *testing.T) {
	r := run(t, serve(t), "", false, "namespace", "get", "broken")
	if !regexp.MustCompile(`^prismctl: internal error\n  whether it was done is not known: look before you repeat it \(request id [0-9a-f]{32}\)\n$`).MatchString(r.err) || r.code != 1 {
		t.Errorf("%d: %s", r.code, r.err)
	}
}

func TestWhenNobodyAnswersItSaysWhatToDo(t *testing.T) {
	for _, tc := range []struct{ args, flag string }{
		{"namespace list --admin 127.0.0.1:1", "--admin"}, {"kv get a-b c --data 127.0.0.1:1", "--data"},
	} {
		r := run(t, nil, "", false, strings.Fields(tc.args)...)
		if r.code != 1 || !strings.Contains(r.err, "does not answer at 127.0.0.1:1") || !strings.Contains(r.err, tc.flag) {
			t.Errorf("%d: %s", r.code, r.err)
		}
		if strings.Contains(r.err, "prismctl local up") {
			t.Errorf("to start another is no help where one was named: %s", r.err)
		}
	}
}

// TestEveryCommandIsUsable holds the rules that every command of the tree must keep.
func TestEveryCommandIsUsable(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s has no description or example", c.CommandPath())
		}
		if r := run(t, nil, "", false, append(strings.Fields(c.CommandPath())[1:], "--help")...); r.code != 0 || !strings.Contains(r.out, "Examples:") || r.err != "" {
			t.Errorf("%s --help: %d %s%s", c.CommandPath(), r.code, r.out, r.err)
		}
		if !c.HasSubCommands() && c.Args == nil {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root.New(&terminal.Terminal{Getenv: func(string) string { return "" }}))
}

func TestCompletionAsksThePrism(t *testing.T) {
	p := serve(t)
	r := run(t, p, "", false, "__complete", "kv", "get", "")
	if !strings.Contains(r.out, "orders\n") || r.code != 0 {
		t.Errorf("%d: %s", r.code, r.out)
	}
	if r := run(t, p, "", false, "completion", "bash"); r.code != 0 || !strings.Contains(r.out, "__start_prismctl") {
		t.Errorf("%d: %.100s", r.code, r.out)
	}
	if r := run(t, p, "", false, "version", "-o", "json"); r.code != 0 || !strings.Contains(r.out, `"version": "unknown"`) {
		t.Errorf("%d: %s", r.code, r.out)
	}
}
