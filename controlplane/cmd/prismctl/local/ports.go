package local

import (
	"fmt"
	"net"
	"strconv"
)

// ports gives out addresses on loopback: the usual port where it is free, else the next free one above it.
type ports struct {
	given map[int]bool
	// taken are the usual ports that were in use, as "what: port 8981 is in use, took 8982".
	taken []string
}

func newPorts() *ports { return &ports{given: map[int]bool{}} }

// usual gives the usual port of something, and notes when it had to be another.
func (p *ports) usual(what string, port int) (string, error) {
	got, err := p.from(port)
	if err == nil && got != port {
		p.taken = append(p.taken, fmt.Sprintf("%s: port %d is in use, took %d", what, port, got))
	}
	return address(got), err
}

// next gives any free port from this one on.
func (p *ports) next(port int) (string, error) {
	got, err := p.from(port)
	return address(got), err
}

func (p *ports) from(port int) (int, error) {
	for n := port; n < min(port+1000, 1<<16); n++ {
		if p.given[n] {
			continue
		}
		l, err := net.Listen("tcp", address(n))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return 0, err
		}
		p.given[n] = true
		return n, nil
	}
	return 0, fmt.Errorf("no free port from %d to %d", port, port+999)
}

func address(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
