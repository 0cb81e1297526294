package harness

import (
	"encoding/json"
	"fmt"
)

// Dump is what a proxy says it serves, of what tests look at.
type Dump struct {
	Epoch      uint64
	TableSwaps uint64 `json:"table_swaps"`
	Partitions []DumpPartition
}

// DumpPartition is one partition of a proxy's table. Rank is less than 0 when the proxy does not own it.
type DumpPartition struct {
	Partition  string
	Rank       int
	Root       string
	SharedRoot string `json:"shared_root"`
	Snapshot   uint64
	Namespaces []DumpNamespace
}

// DumpNamespace is a namespace in a proxy's table.
type DumpNamespace struct {
	Name, Version string
	Backends      []string
	Draining      bool
	CallsNow      int64 `json:"calls_under_way"`
}

// Dump returns what the proxy says it serves.
func (p *Proxy) Dump() (Dump, error) {
	body, err := fetch("http://" + p.HTTPAddress + "/config_dump")
	if err != nil {
		return Dump{}, err
	}
	var d Dump
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		return Dump{}, fmt.Errorf("%s: %w", p.ID, err)
	}
	return d, nil
}

// Namespace returns a namespace of the proxy's table, and whether it is there.
func (d Dump) Namespace(name string) (DumpNamespace, bool) {
	for _, p := range d.Partitions {
		for _, n := range p.Namespaces {
			if n.Name == name {
				return n, true
			}
		}
	}
	return DumpNamespace{}, false
}
