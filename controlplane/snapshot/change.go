package snapshot

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// Edit computes a change from the tree that it is to be made on. It is pure: it is evaluated again, on a newer tree,
// when another change was first. version is the number of the snapshot that will hold the change; base may bear the
// same number, when it holds what others change in that snapshot. An error refuses the change and is given to its
// author as it is.
type Edit func(base *Tree, version uint64) ([]Set, error)

// Set is one object's change.
type Set struct {
	// Name is the whole name: ns/x, backend/x, profile/x.
	Name string
	// Data is the marshalled message of config/v1; nil deletes the object. It belongs to the tree from now on.
	Data []byte
	// Record is, for a namespace, the marshalled NamespaceRecord whose hash Data holds. It may be left out when the
	// namespace has that record already.
	Record []byte
	// Kind is what the history calls the change; when it is not set, the change is what it does: create, update,
	// delete.
	Kind recordv1.ChangeKind
	// ToVersion is, for a rollback, the version gone back to.
	ToVersion uint64
	// Author, Message and RequestID go into the history, and with them TraceParent, the W3C trace context of the
	// request, which may be empty.
	Author, Message, RequestID, TraceParent string
}

// With returns the tree with the sets done, and what they changed. A set that changes nothing leaves no trace; when
// none does, the tree is t itself.
func (t *Tree) With(version uint64, sets []Set) (*Tree, []*recordv1.Change, error) {
	var changes []*recordv1.Change
	var objects []Object
	seen := make(map[string]bool, len(sets))
	for _, set := range sets {
		if seen[set.Name] {
			return nil, nil, fmt.Errorf("snapshot: %s is set twice", set.Name)
		}
		seen[set.Name] = true
		before, _ := t.Object(set.Name)
		after := Object{Name: set.Name, Data: set.Data}
		if set.Data != nil {
			after.Hash = ident.HashOf(set.Data)
		}
		if before.Hash == after.Hash {
			continue
		}
		if strings.HasPrefix(set.Name, NamespacePrefix) {
			if err := set.checkRecord(before); err != nil {
				return nil, nil, err
			}
		}
		objects = append(objects, after)
		changes = append(changes, set.change(before.Hash, after.Hash))
	}
	if len(changes) == 0 {
		return t, nil, nil
	}
	next, err := t.Put(version, objects)
	return next, changes, err
}

// Put returns the tree in which some objects, each named once, are others; one without a hash is gone. They are taken
// as they are: their records must be stored already, or come with them.
func (t *Tree) Put(version uint64, objects []Object) (*Tree, error) {
	partitions := map[ident.Partition][]Object{}
	var shared []Object
	for _, o := range objects {
		namespace, isNamespace := strings.CutPrefix(o.Name, NamespacePrefix)
		switch {
		case isNamespace:
			p := ident.PartitionOf(namespace, t.partitions)
			partitions[p] = append(partitions[p], o)
		case strings.HasPrefix(o.Name, BackendPrefix), strings.HasPrefix(o.Name, ProfilePrefix):
			shared = append(shared, o)
		default:
			return nil, fmt.Errorf("snapshot: %q is no name of an object", o.Name)
		}
	}
	replaced := make(map[ident.Partition]*Collection, len(partitions))
	for p, objects := range partitions {
		c, err := t.Collection(p).With(objects)
		if err != nil {
			return nil, err
		}
		replaced[p] = c
	}
	c, err := t.shared.With(shared)
	if err != nil {
		return nil, err
	}
	return t.Replace(version, replaced, c), nil
}

// checkRecord finds a configuration whose record would not be stored.
func (s Set) checkRecord(before Object) error {
	want, err := RecordHash(s.Data)
	if err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	if s.Record != nil {
		if ident.HashOf(s.Record) != want {
			return fmt.Errorf("snapshot: the record of %s is not the one that its configuration names", s.Name)
		}
		return nil
	}
	if has, err := RecordHash(before.Data); !want.IsZero() && (err != nil || has != want) {
		return fmt.Errorf("snapshot: %s comes without its record", s.Name)
	}
	return nil
}

func (s Set) change(before, after ident.Hash) *recordv1.Change {
	kind := s.Kind
	switch {
	case kind != recordv1.ChangeKind_CHANGE_KIND_UNSPECIFIED:
	case before.IsZero():
		kind = recordv1.ChangeKind_CHANGE_KIND_CREATE
	case after.IsZero():
		kind = recordv1.ChangeKind_CHANGE_KIND_DELETE
	default:
		kind = recordv1.ChangeKind_CHANGE_KIND_UPDATE
	}
	return &recordv1.Change{
		Kind: kind, Name: s.Name, Before: before.Bytes(), After: after.Bytes(),
		Author: s.Author, Message: s.Message, RequestId: s.RequestID, ToVersion: s.ToVersion, TraceParent: s.TraceParent,
	}
}

// RecordHash returns the hash of the NamespaceRecord that a marshalled NamespaceConfig names, zero when it names none.
// It looks at nothing else, because a sweep asks it of every object.
func RecordHash(data []byte) (ident.Hash, error) {
	const recordHashField = 7
	var found ident.Hash
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return found, fmt.Errorf("snapshot: configuration: %w", protowire.ParseError(n))
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(field, kind, data); n < 0 {
			return found, fmt.Errorf("snapshot: configuration: %w", protowire.ParseError(n))
		}
		if field == recordHashField {
			value, size := protowire.ConsumeBytes(data)
			if kind != protowire.BytesType || size < 0 {
				return found, errors.New("snapshot: configuration: record_hash is not of bytes")
			}
			h, err := ident.HashFrom(value)
			if err != nil {
				return found, err
			}
			found = h
		}
		data = data[n:]
	}
	return found, nil
}

// Note is who rolls back, and why.
type Note struct{ Author, Message, RequestID, TraceParent string }

// RollbackTo returns the tree of another version under a new number, and the one change that the history tells of it:
// before and after are roots. When t is that configuration already, it returns t itself and no change.
func (t *Tree) RollbackTo(target *Tree, version uint64, note Note) (*Tree, []*recordv1.Change, error) {
	if t.partitions != target.partitions {
		return nil, nil, fmt.Errorf("snapshot: a tree of %d partitions cannot become one of %d", t.partitions, target.partitions)
	}
	if t.root == target.root {
		return t, nil, nil
	}
	next := *target
	next.version = version
	return &next, []*recordv1.Change{{
		Kind: recordv1.ChangeKind_CHANGE_KIND_ROLLBACK, Before: t.root.Bytes(), After: target.root.Bytes(),
		Author: note.Author, Message: note.Message, RequestId: note.RequestID, ToVersion: target.version, TraceParent: note.TraceParent,
	}}, nil
}
