package harness

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
)

// Hosts is a network on this machine in which every program has a host of its own: a network namespace of Linux, with a
// cable to a bridge. When a cable is pulled packets vanish and nobody is told, as when a machine or a switch dies. It needs
// root and iproute2, and ends with the test.
type Hosts struct {
	// Gateway is the address of the test itself in that network.
	Gateway string

	t      T
	bridge string
	id     int
	all    map[string]*host
}

type host struct{ namespace, cable, address string }

// subnet is one of the addresses for private use.
const subnet = "10.213.0."

// NewHosts makes a network without hosts.
func NewHosts(t T) *Hosts {
	t.Helper()
	id := os.Getpid() % 100_000 // names of interfaces have 15 characters at most
	h := &Hosts{Gateway: subnet + "1", t: t, bridge: fmt.Sprintf("prism%d", id), id: id, all: map[string]*host{}}
	h.ip("link", "add", h.bridge, "type", "bridge")
	t.Cleanup(func() { h.ip("link", "del", h.bridge) })
	h.ip("addr", "add", h.Gateway+"/24", "dev", h.bridge)
	h.ip("link", "set", h.bridge, "up")
	return h
}

// of returns a program's host, making it when it is new.
func (h *Hosts) of(program string) *host {
	h.t.Helper()
	if one := h.all[program]; one != nil {
		return one
	}
	n := len(h.all) + 2
	one := &host{fmt.Sprintf("prism-%d-%d", h.id, n), fmt.Sprintf("pr%d-%d", h.id, n), fmt.Sprintf("%s%d", subnet, n)}
	h.all[program] = one
	h.ip("netns", "add", one.namespace)
	h.t.Cleanup(func() { h.ip("netns", "del", one.namespace) })
	h.ip("link", "add", one.cable, "type", "veth", "peer", "name", "eth0", "netns", one.namespace)
	h.ip("link", "set", one.cable, "master", h.bridge, "up")
	h.ip("-n", one.namespace, "addr", "add", one.address+"/24", "dev", "eth0")
	h.ip("-n", one.namespace, "link", "set", "eth0", "up")
	h.ip("-n", one.namespace, "link", "set", "lo", "up")
	return one
}

// Pull pulls a program's cable, Plug puts it back.
func (h *Hosts) Pull(program string) { h.ip("link", "set", h.of(program).cable, "down") }

// Plug puts a program's cable back.
func (h *Hosts) Plug(program string) { h.ip("link", "set", h.of(program).cable, "up") }

// address is an address on a program's host where nothing listens yet.
func (h *Hosts) address(program string) string {
	h.t.Helper()
	_, port, err := net.SplitHostPort(FreeAddress(h.t)) // as good as any: the host has all its ports free
	if err != nil {
		h.t.Fatalf("%v", err)
	}
	return net.JoinHostPort(h.of(program).address, port)
}

func (h *Hosts) ip(args ...string) {
	h.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		h.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}
