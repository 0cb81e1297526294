package local

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/settings"
)

// TestMain lets the test binary be another process that holds a directory.
func TestMain(m *testing.M) {
	if len(os.Args) != 3 || os.Args[1] != "hold" {
		os.Exit(m.Run())
	}
	if _, err := directory(os.Args[2]).lock(); err != nil {
		panic(err)
	}
	fmt.Println("held")
	select {}
}

func none(string) (string, bool) { return "", false }

func TestTheProgramsTakeTheirConfigurations(t *testing.T) {
	dir := directory(t.TempDir())
	p, err := makePlan(dir, 3, "127.0.0.1:6379", 5*time.Second, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.write(); err != nil {
		t.Fatal(err)
	}
	admin, err := settings.LoadAdmin(dir.file("prism-admin.yaml"), none)
	if err != nil {
		t.Fatal(err)
	}
	if scoped := admin.GetRelease().GetScoped(); scoped.GetAtOnce() || scoped.GetSoak().AsDuration() != 5*time.Second || admin.GetRelease().GetAdditive() != nil {
		t.Errorf("changes go to the fleet by %v", admin.GetRelease())
	}
	var addresses []string
	for i := range 3 {
		proxy, err := settings.LoadProxy(dir.file(fmt.Sprintf("proxy-%d.yaml", i+1)), none)
		if err != nil {
			t.Fatal(err)
		}
		if got := proxy.GetAdminEndpoints(); len(got) != 1 || got[0] != admin.GetFleetListen() {
			t.Errorf("proxy %d calls %v, want %s", i+1, got, admin.GetFleetListen())
		}
		addresses = append(addresses, proxy.GetListen(), proxy.GetHttpListen())
	}
	addresses = append(addresses, admin.GetListen(), admin.GetFleetListen(), admin.GetHttpListen(), p.nats.Address)
	slices.Sort(addresses)
	if got := len(slices.Compact(slices.Clone(addresses))); got != 10 {
		t.Errorf("%d different addresses, want 10: %v", got, addresses)
	}
	contexts, err := target.Read(dir.file("context.yaml"))
	if err != nil || len(contexts.Contexts["local"].Data) != 3 || contexts.Contexts["local"].Admin[0] != admin.GetListen() {
		t.Errorf("the context file has %v, %v", contexts, err)
	}
	for _, b := range p.backends() {
		if v := admission.ValidateBackend(b); len(v) > 0 {
			t.Errorf("%s: %v", b.GetName(), v)
		}
	}
}

func TestTheSampleIsValid(t *testing.T) {
	docs, err := admission.ParseYAML("sample.yaml", sampleFile)
	if err != nil || len(docs) != 1 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	if v := append(admission.Validate(docs[0].Request), admission.NotOffered(docs[0].Request)...); len(v) > 0 {
		t.Error(v)
	}
}

func TestAPortInUseIsPassedBy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	free := newPorts()
	got, err := free.usual("control plane", port)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("control plane: port %d is in use, took %s", port, got[strings.LastIndexByte(got, ':')+1:])
	if len(free.taken) != 1 || free.taken[0] != want {
		t.Errorf("noted %q, want %q", free.taken, want)
	}
	again, err := free.next(port)
	if err != nil || again == got {
		t.Errorf("%s was given twice, %v", got, err)
	}
}

func TestADirectoryHasOneHolderAndADeadOneHoldsNothing(t *testing.T) {
	dir := directory(t.TempDir())
	if pid, err := dir.running(); pid != 0 || err != nil {
		t.Errorf("an empty directory is held by %d, %v", pid, err)
	}
	holder := exec.Command(os.Args[0], "hold", string(dir))
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if pid, err := dir.running(); pid != holder.Process.Pid || err != nil {
		t.Errorf("held by %d, %v; want %d", pid, err, holder.Process.Pid)
	}
	if _, err := dir.lock(); err == nil || !strings.Contains(err.Error(), strconv.Itoa(holder.Process.Pid)) {
		t.Errorf("locking it again: %v", err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // it was killed
	if pid, err := dir.running(); pid != 0 || err != nil {
		t.Errorf("held by the dead %d, %v", pid, err)
	}
}

func TestAWipeRemovesOnlyWhatIsOurs(t *testing.T) {
	dir := directory(t.TempDir())
	touch := func(names ...string) {
		for _, name := range names {
			if err := os.MkdirAll(filepath.Dir(dir.file(name)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir.file(name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	touch("notes.txt", "proxy-1.log", "etcd/member/wal", "data.db", "data.db-wal", "state.json")
	if err := dir.wipe(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir.file("data.db")); err != nil {
		t.Error("a directory without a lock file was wiped")
	}
	touch("lock")
	if err := dir.wipe(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(string(dir))
	if err != nil || len(left) != 1 || left[0].Name() != "notes.txt" {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := os.Remove(dir.file("notes.txt")); err != nil {
		t.Fatal(err)
	}
	touch("lock")
	if err := dir.wipe(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(string(dir)); !os.IsNotExist(err) {
		t.Errorf("the empty directory is left: %v", err)
	}
}

func TestTheBrokerServesWhileItRuns(t *testing.T) {
	at, err := newPorts().next(24222)
	if err != nil {
		t.Fatal(err)
	}
	part, err := broker(at, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- part.Run(ctx) }()
	if err := part.Started(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "INFO ") || !strings.Contains(line, `"jetstream":true`) {
		t.Errorf("it says %q, %v", line, err)
	}
	conn.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStatusAndDownWithoutAPrism(t *testing.T) {
	t.Chdir(t.TempDir())
	run := func(args ...string) (string, error) {
		var out, errs strings.Builder
		cmd := New(&terminal.Terminal{Out: &out, Err: &errs})
		cmd.SetArgs(args)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(t.Context())
		return out.String() + errs.String(), err
	}
	if _, err := run("status"); err == nil || !strings.Contains(err.Error(), "no local Prism runs in .prism") {
		t.Errorf("status: %v", err)
	}
	if out, err := run("down", "--wipe"); err != nil || !strings.Contains(out, "no local Prism runs") {
		t.Errorf("down: %s, %v", out, err)
	}
	if _, err := run("up", "--proxies", "0"); err == nil {
		t.Error("a Prism without proxies was started")
	}
	if _, err := run("up"); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("up without the programs beside it: %v", err)
	}
}
