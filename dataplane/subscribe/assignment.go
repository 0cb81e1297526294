package subscribe

import (
	"fmt"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// assignment is a well-formed Assignment with the bytes and the version that it came with. It does not change.
type assignment struct {
	message *configv1.Assignment
	encoded []byte
	version string
}

// maxPartitions bounds what an assignment makes the proxy allocate; installations have far fewer.
const maxPartitions = 1 << 16

func parseAssignment(encoded []byte, version string) (*assignment, error) {
	m := &configv1.Assignment{}
	if err := proto.Unmarshal(encoded, m); err != nil {
		return nil, err
	}
	if n := len(m.GetPartitions()); n == 0 || n > maxPartitions {
		return nil, fmt.Errorf("it has %d partitions, want 1 to %d", n, maxPartitions)
	}
	members := uint32(len(m.GetMembers()))
	outside := func(i uint32) bool { return i >= members }
	for p, owners := range m.GetPartitions() {
		if slices.ContainsFunc(owners.GetOwners(), outside) || slices.ContainsFunc(owners.GetLoading(), outside) {
			return nil, fmt.Errorf("partition %d has an owner that is not one of the %d members", p, members)
		}
	}
	return &assignment{message: m, encoded: encoded, version: version}, nil
}

// count is the number of partitions of the installation.
func (a *assignment) count() uint32 { return uint32(len(a.message.GetPartitions())) }

func (a *assignment) partitions() iter.Seq[ident.Partition] {
	return func(yield func(ident.Partition) bool) {
		for p := range a.message.GetPartitions() {
			if !yield(ident.Partition(p)) {
				return
			}
		}
	}
}

// owned is whether any proxy owns the partition.
func (a *assignment) owned(p ident.Partition) bool {
	return len(a.message.GetPartitions()[p].GetOwners()) > 0
}

// mine is whether the proxy is to have the partition: it owns it or loads it, or is a validator, which has them all.
func (a *assignment) mine(p ident.Partition, node Node) bool {
	if node.Validator {
		return true
	}
	owners := a.message.GetPartitions()[p]
	is := func(i uint32) bool { return a.message.GetMembers()[i].GetId() == node.ID }
	return slices.ContainsFunc(owners.GetOwners(), is) || slices.ContainsFunc(owners.GetLoading(), is)
}
