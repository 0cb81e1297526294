package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/e2e/harness"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// TestDamagedMemoryIsFoundAndRepaired changes the configuration of a namespace where a proxy holds it in memory, as bad
// memory would: within 15 s the namespace is named as drifted, and it is repaired while calls are answered.
func TestDamagedMemoryIsFoundAndRepaired(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := harness.Start(t, harness.Options{Backends: backends(t)})
	made := c.Apply(ctx, onRedis("damaged"), onRedis("sound")).GetSnapshotVersion()
	// What is in memory besides, such as the table's own copy of the text, is not preceded by its tag and length.
	field, err := proto.Marshal(&configv1.NamespaceConfig{StoragePrefix: "damaged." + strconv.FormatUint(made, 36)})
	if err != nil {
		t.Fatal(err)
	}
	traffic := harness.StartTraffic(ctx, 2, harness.Traffic{Proxies: clients(c), Namespaces: []string{"damaged", "sound"}, Exact: true})
	waitCalls(ctx, t, traffic, 100)
	p := c.Proxies[0]
	if n := overwrite(t, p.Pid(), field); n == 0 {
		t.Fatal("the configuration was not found in the proxy's memory")
	}
	harness.Eventually(t, 15*time.Second, "the drift is found", func() error {
		if log := string(p.Log()); !strings.Contains(log, `"ns/damaged"`) || strings.Contains(log, `"ns/sound"`) {
			return errors.New("the log of the proxy does not name the namespace, and only that")
		}
		if log := string(c.Admins[0].Log()); !strings.Contains(log, "a proxy serves what has drifted") {
			return errors.New("the control plane has not heard of it")
		}
		return nil
	})
	harness.Eventually(t, 30*time.Second, "the drift is repaired", func() error {
		shown, err := c.Admins[0].Operator.ListProxies(ctx, listAll)
		if err != nil {
			return err
		}
		for _, of := range shown.GetProxies() {
			if len(of.GetDrifted()) > 0 {
				return fmt.Errorf("%s: %q have drifted", of.GetMember().GetId(), of.GetDrifted())
			}
		}
		if body := c.Get(c.Admins[0].HTTPAddress, "/metrics"); !strings.Contains(body, "prism_fleet_drifted 0") {
			return errors.New("it is still counted")
		}
		if body := c.Get(p.HTTPAddress, "/metrics"); !strings.Contains(body, "prism_subscribe_drifted_total 1\n") {
			return errors.New("the proxy did not count one")
		}
		return nil
	})
	c.WaitLive(ctx, "damaged", made)
	waitCalls(ctx, t, traffic, traffic.Calls()+100)
	if calls, problems := traffic.Stop(); len(problems) > 0 {
		t.Errorf("of %d calls failed: %v", calls, problems)
	}
	if _, err := p.KeyValue.Put(ctx, &datav1.PutRequest{Namespace: "damaged", Id: []byte("a"), Value: []byte("b")}); err != nil {
		t.Error(err)
	}
}

// overwrite changes one bit wherever a process has the bytes in memory that it can write to, and says how often.
func overwrite(t *testing.T, pid int, pattern []byte) (n int) {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		region := make([]byte, to-from)
		if _, err := memory.ReadAt(region, from); err != nil {
			continue // not there any more, or none that can be read
		}
		for at := 0; ; at += len(pattern) {
			next := bytes.Index(region[at:], pattern)
			if next < 0 {
				break
			}
			at += next
			last := at + len(pattern) - 1
			if _, err := memory.WriteAt([]byte{region[last] ^ 1}, from+int64(last)); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	return n
}
