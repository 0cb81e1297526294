package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

// Usage is what namespaces hold on one backend: their number, and what they reserved.
type Usage struct {
	Namespaces uint64
	ReadRPS    uint64
	WriteRPS   uint64
	DataBytes  uint64
}

type backendUsage struct {
	backend string
	Usage
}

// deltas is what is to be added to usages. Sums wrap around, so that what is taken away is added as well.
type deltas map[string]Usage

func (d *deltas) add(backend string, u Usage, times int) {
	if *d == nil {
		*d = deltas{}
	}
	n := uint64(times)
	sum := (*d)[backend]
	(*d)[backend] = Usage{
		Namespaces: sum.Namespaces + n*u.Namespaces,
		ReadRPS:    sum.ReadRPS + n*u.ReadRPS,
		WriteRPS:   sum.WriteRPS + n*u.WriteRPS,
		DataBytes:  sum.DataBytes + n*u.DataBytes,
	}
}

// namespace adds what a namespace holds, times +1 or -1. Objects of other kinds hold nothing.
func (d *deltas) namespace(name string, data []byte, times int) error {
	short, ok := strings.CutPrefix(name, NamespacePrefix)
	if !ok {
		return nil
	}
	holds, err := holdings(short, data)
	if err != nil {
		return err
	}
	for backend, u := range holds {
		d.add(backend, u, times)
	}
	return nil
}

// holdings returns what a namespace holds, by backend.
func holdings(name string, data []byte) (map[string]Usage, error) {
	var cfg configv1.NamespaceConfig
	if err := proto.Unmarshal(data, &cfg); err != nil {
		return nil, fmt.Errorf("snapshot: namespace %s: %w", name, err)
	}
	if cfg.Namespace != name {
		return nil, fmt.Errorf("snapshot: namespace %s holds the configuration of %q", name, cfg.Namespace)
	}
	holds := map[string]Usage{}
	for _, p := range cfg.Patterns {
		for _, b := range p.Bindings {
			holds[b.Backend] = Usage{Namespaces: 1}
		}
	}
	for _, r := range cfg.Reservations {
		u := holds[r.Backend]
		holds[r.Backend] = Usage{
			Namespaces: 1,
			ReadRPS:    u.ReadRPS + uint64(r.ReadRps),
			WriteRPS:   u.WriteRPS + uint64(r.WriteRps),
			DataBytes:  u.DataBytes + r.DataBytes,
		}
	}
	return holds, nil
}

// Bound returns the short names of the backends that a namespace's configuration is bound to, in no order. Objects of
// other kinds, and those that are gone, are bound to none.
func (o Object) Bound() ([]string, error) {
	if o.Hash.IsZero() || !strings.HasPrefix(o.Name, NamespacePrefix) {
		return nil, nil
	}
	holds, err := holdings(o.ShortName(), o.Data)
	if err != nil {
		return nil, err
	}
	return slices.Collect(maps.Keys(holds)), nil
}

// move takes away what one list holds and adds what another does.
func (d *deltas) move(from, to []backendUsage) {
	for _, u := range from {
		d.add(u.backend, u.Usage, -1)
	}
	for _, u := range to {
		d.add(u.backend, u.Usage, +1)
	}
}

func (d deltas) applyTo(usage map[string]Usage) {
	sum := deltas(usage)
	for backend, u := range d {
		sum.add(backend, u, +1)
		if usage[backend] == (Usage{}) {
			delete(usage, backend)
		}
	}
}

// applyToList returns the list with the deltas added, sorted by backend, and the list itself when nothing changes.
func (d deltas) applyToList(list []backendUsage) []backendUsage {
	changes := false
	for _, u := range d {
		changes = changes || u != Usage{}
	}
	if !changes {
		return list
	}
	sum := map[string]Usage{}
	for _, u := range list {
		sum[u.backend] = u.Usage
	}
	d.applyTo(sum)
	next := make([]backendUsage, 0, len(sum))
	for backend, u := range sum {
		next = append(next, backendUsage{backend, u})
	}
	slices.SortFunc(next, func(a, b backendUsage) int { return strings.Compare(a.backend, b.backend) })
	return next
}
