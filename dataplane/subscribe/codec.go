package subscribe

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/manifest"
)

const stateMagic = "prism proxy state 1\n"

// The kinds of the state file's fields.
const (
	kindNode       = 'n'
	kindInstall    = 'i'
	kindRevision   = 'r'
	kindContact    = 't'
	kindVersion    = 'v' // the assignment's
	kindAssignment = 'a'
	kindSet        = 's'
	kindCurrent    = 'S' // the set that the control plane gave last
	kindCell       = 'c'
	kindRefusal    = 'f' // in the cell before
)

var errCut = errors.New("cut or damaged")

// saved is a state as it is kept on disk. It does not change.
type saved struct {
	node         string
	installation string
	revision     int64
	lastContact  time.Time
	assignment   *assignment
	shared       *version // the set received last; nil when there is none
	sets         map[ident.Hash]*version
	order        []savedCell                   // to be written
	cells        map[ident.Partition]savedCell // as read
}

type savedCell struct {
	partition ident.Partition
	version   *version
	refused   map[string]refusal
}

// versions are the collections that the state refers to.
func (s *saved) versions() []*version {
	out := slices.Collect(maps.Values(s.sets))
	if s.shared != nil {
		out = append(out, s.shared)
	}
	for _, c := range s.order {
		out = append(out, c.version)
	}
	return out
}

// stateIndex is what the state file says; the members are in files of their own.
type stateIndex struct {
	node         string
	installation string
	revision     int64
	lastContact  time.Time
	assignment   *assignment
	sets         [][]byte // sentinels
	current      int      // which of sets was received last, from 1; 0 for none
	cells        []cellIndex
}

type cellIndex struct {
	partition ident.Partition
	sentinel  []byte
	refused   map[string]refusal
}

// encodeState writes the state file: fields of kind, length and value, and the SHA-256 of all of them.
func encodeState(s *saved) []byte {
	out := make([]byte, 0, 4096+160*len(s.order))
	out = append(out, stateMagic...)
	field := func(kind byte, parts ...[]byte) {
		size := 0
		for _, p := range parts {
			size += len(p)
		}
		out = append(out, kind)
		out = binary.AppendUvarint(out, uint64(size))
		for _, p := range parts {
			out = append(out, p...)
		}
	}
	field(kindNode, []byte(s.node))
	field(kindInstall, []byte(s.installation))
	field(kindRevision, binary.AppendVarint(nil, s.revision))
	field(kindContact, binary.AppendVarint(nil, s.lastContact.UnixNano()))
	if s.assignment != nil {
		field(kindVersion, []byte(s.assignment.version))
		field(kindAssignment, s.assignment.encoded)
	}
	for root, v := range s.sets {
		if !root.IsZero() && (s.shared == nil || root != s.shared.root()) {
			field(kindSet, v.encoded)
		}
	}
	if s.shared != nil {
		field(kindCurrent, s.shared.encoded)
	}
	for _, c := range s.order {
		field(kindCell, binary.AppendUvarint(nil, uint64(c.partition)), c.version.encoded)
		for name, r := range c.refused {
			field(kindRefusal, encodeRefusal(name, r)...)
		}
	}
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

// decodeState reads what encodeState wrote, and nothing else.
func decodeState(data []byte) (*stateIndex, error) {
	rest, ok := bytes.CutPrefix(data, []byte(stateMagic))
	if !ok || len(rest) < sha256.Size {
		return nil, errors.New("not a state file of this version")
	}
	body := data[:len(data)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], data[len(body):]) {
		return nil, errors.New("its checksum does not hold")
	}
	rest = rest[:len(rest)-sha256.Size]
	s := &stateIndex{}
	var assignmentVersion string
	for len(rest) > 0 {
		kind := rest[0]
		value, after, err := cutBytes(rest[1:])
		if err != nil {
			return nil, err
		}
		rest = after
		switch kind {
		case kindNode:
			s.node = string(value)
		case kindInstall:
			s.installation = string(value)
		case kindRevision:
			s.revision, err = varint(value)
		case kindContact:
			var nanos int64
			nanos, err = varint(value)
			s.lastContact = time.Unix(0, nanos)
		case kindVersion:
			assignmentVersion = string(value)
		case kindAssignment:
			s.assignment, err = parseAssignment(value, assignmentVersion)
		case kindSet:
			s.sets = append(s.sets, value)
		case kindCurrent:
			s.sets = append(s.sets, value)
			s.current = len(s.sets)
		case kindCell:
			err = s.addCell(value)
		case kindRefusal:
			err = s.addRefusal(value)
		default:
			err = fmt.Errorf("a field of an unknown kind %q", kind)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stateIndex) addCell(value []byte) error {
	p, n := binary.Uvarint(value)
	if n <= 0 || p > 1<<32-1 {
		return errCut
	}
	s.cells = append(s.cells, cellIndex{partition: ident.Partition(p), sentinel: value[n:], refused: map[string]refusal{}})
	return nil
}

func encodeRefusal(name string, r refusal) [][]byte {
	rejection, err := proto.Marshal(r.rejection)
	if err != nil { // text that is not UTF-8
		rejection = nil
	}
	parts := [][]byte{
		binary.AppendUvarint(nil, uint64(len(name))), []byte(name), r.hash[:], r.shared[:],
		binary.AppendUvarint(nil, uint64(len(rejection))), rejection,
	}
	if r.good != nil {
		parts = append(parts, r.good.Hash[:], r.good.Data)
	}
	return parts
}

func (s *stateIndex) addRefusal(value []byte) error {
	if len(s.cells) == 0 {
		return errCut
	}
	name, rest, err := cutBytes(value)
	if err != nil || len(rest) < 2*sha256.Size {
		return errCut
	}
	r := refusal{rejection: &configv1.Rejection{}}
	rest = rest[copy(r.hash[:], rest):]
	rest = rest[copy(r.shared[:], rest):]
	rejection, rest, err := cutBytes(rest)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(rejection, r.rejection); err != nil {
		return err
	}
	if len(rest) > 0 {
		if len(rest) < sha256.Size {
			return errCut
		}
		r.good = &Object{}
		r.good.Data = rest[copy(r.good.Hash[:], rest):]
		if ident.HashOf(r.good.Data) != r.good.Hash {
			return errCut
		}
	}
	s.cells[len(s.cells)-1].refused[string(name)] = r
	return nil
}

// sentinelRoot reads the root from an encoded sentinel.
func sentinelRoot(encoded []byte) (ident.Hash, error) {
	sentinel := &configv1.Sentinel{}
	if err := proto.Unmarshal(encoded, sentinel); err != nil {
		return ident.Hash{}, err
	}
	return ident.HashFrom(sentinel.GetRoot())
}

// encodeMembers writes a collection: for each member in order its name and its bytes.
func encodeMembers(v *version) []byte {
	size := 0
	for name, o := range v.members {
		size += 2*binary.MaxVarintLen32 + len(name) + len(o.Data)
	}
	out := make([]byte, 0, size)
	for _, e := range v.manifest.Entries() {
		data := v.members[e.Name].Data
		out = binary.AppendUvarint(out, uint64(len(e.Name)))
		out = append(out, e.Name...)
		out = binary.AppendUvarint(out, uint64(len(data)))
		out = append(out, data...)
	}
	return out
}

// decodeMembers reads what encodeMembers wrote. The members refer to data.
func decodeMembers(data []byte) (*manifest.Manifest, map[string]Object, error) {
	members := map[string]Object{}
	var entries []manifest.Entry
	for rest := data; len(rest) > 0; {
		name, after, err := cutBytes(rest)
		if err != nil {
			return nil, nil, err
		}
		value, after, err := cutBytes(after)
		if err != nil {
			return nil, nil, err
		}
		rest = after
		o := Object{Hash: ident.HashOf(value), Data: value}
		members[string(name)] = o
		entries = append(entries, manifest.Entry{Name: string(name), Hash: o.Hash})
	}
	if len(entries) == 0 {
		return manifest.Empty, members, nil
	}
	m, err := manifest.New(entries)
	return m, members, err
}

// cutBytes takes a length and as many bytes. They cannot be appended to.
func cutBytes(data []byte) (value, rest []byte, err error) {
	n, used := binary.Uvarint(data)
	if used <= 0 || n > uint64(len(data)-used) {
		return nil, nil, errCut
	}
	end := used + int(n)
	return data[used:end:end], data[end:], nil
}

func varint(data []byte) (int64, error) {
	v, n := binary.Varint(data)
	if n != len(data) || n <= 0 {
		return 0, errCut
	}
	return v, nil
}
