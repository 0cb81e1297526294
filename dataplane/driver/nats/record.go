package nats

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// The headers of a message.
const (
	recordHeader   = "Prism-Item"
	expectedHeader = "Nats-Expected-Last-Subject-Sequence"
	lifeHeader     = "Nats-TTL"
	sequenceHeader = "Nats-Sequence"
)

// kind is what a message says of its subject.
type kind byte

// The kinds.
const (
	whole   kind = 'v' // an item, whose value is the message's data
	parted  kind = 'l' // an item whose value is in parts
	deleted kind = 'd' // nothing: it was removed
	lapsed  kind = 'x' // nothing: its time ran out
)

// What the header of a message holds, in base64, in this order:
//
//	1 byte    format
//	1 byte    kind
//	8 bytes   expiry, milliseconds since 1970, 0 for never
//	8 bytes   when the item was last written, microseconds since 1970
//	24 bytes  mark
//	28 bytes  of kind parted: the value's name, its size, and that of its parts
//	          content type and metadata: each string behind its length
const (
	format     = 1
	expireAt   = 2
	modifiedAt = 10
	markAt     = 18
	largeAt    = markAt + markSize
	largeSize  = 28
	markSize   = 24
)

// mark is what a version begins with: the stream's identity, when the message was written in milliseconds since 1970, and
// a random number. The message's sequence follows. So a version does not repeat, not even in a stream that was deleted
// and made anew while somebody wrote.
type mark [markSize]byte

func newMark(identity uint64, now time.Time) mark {
	var m mark
	binary.BigEndian.PutUint64(m[:], identity)
	binary.BigEndian.PutUint64(m[8:], uint64(now.UnixMilli()))
	rand.Read(m[16:])
	return m
}

func (m mark) version(sequence uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, markSize+8), m[:]...), sequence)
}

// record is what a message's header says.
type record struct {
	kind        kind
	expire      int64
	modified    int64
	mark        mark
	large       manifest // of kind parted
	contentType string
	metadata    map[string]string
}

// manifest says where the parts of a value are.
type manifest struct {
	name [16]byte
	size uint64 // of the value, in bytes
	part uint32 // of all parts but the last
}

var errRecord = errors.New("the message's header cannot be read")

func (r *record) encode() string {
	size := largeAt + largeSize + len(r.contentType) + 16
	for k, v := range r.metadata {
		size += len(k) + len(v) + 8
	}
	b := append(make([]byte, 0, size), format, byte(r.kind))
	b = binary.BigEndian.AppendUint64(b, uint64(r.expire))
	b = binary.BigEndian.AppendUint64(b, uint64(r.modified))
	b = append(b, r.mark[:]...)
	if r.kind == parted {
		b = append(b, r.large.name[:]...)
		b = binary.BigEndian.AppendUint64(b, r.large.size)
		b = binary.BigEndian.AppendUint32(b, r.large.part)
	}
	if r.contentType != "" || len(r.metadata) > 0 {
		b = appendString(b, r.contentType)
		for k, v := range r.metadata {
			b = appendString(appendString(b, k), v)
		}
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

func decode(text string) (*record, error) {
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(b) < largeAt || b[0] != format {
		return nil, errRecord
	}
	r := &record{
		kind: kind(b[1]), expire: int64(binary.BigEndian.Uint64(b[expireAt:])), modified: int64(binary.BigEndian.Uint64(b[modifiedAt:])),
		mark: mark(b[markAt:largeAt]),
	}
	switch b = b[largeAt:]; r.kind {
	case parted:
		if len(b) < largeSize {
			return nil, errRecord
		}
		r.large = manifest{name: [16]byte(b[:16]), size: binary.BigEndian.Uint64(b[16:]), part: binary.BigEndian.Uint32(b[24:])}
		if b = b[largeSize:]; r.large.part == 0 {
			return nil, errRecord
		}
	case whole, deleted, lapsed:
	default:
		return nil, errRecord
	}
	if len(b) == 0 {
		return r, nil
	}
	var ok bool
	if r.contentType, b, ok = cutString(b); !ok {
		return nil, errRecord
	}
	for len(b) > 0 {
		var k, v string
		if k, b, ok = cutString(b); ok {
			v, b, ok = cutString(b)
		}
		if !ok {
			return nil, errRecord
		}
		if r.metadata == nil {
			r.metadata = map[string]string{}
		}
		r.metadata[k] = v
	}
	return r, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return "", nil, false
	}
	return string(b[size : size+int(n)]), b[size+int(n):], true
}

// entry is the last message of a subject.
type entry struct {
	sequence uint64 // 0: there is none
	record   *record
	value    []byte
}

// read makes an entry of a message that the stream holds.
func read(sequence uint64, header nats.Header, data []byte) (entry, error) {
	r, err := decode(header.Get(recordHeader))
	return entry{sequence: sequence, record: r, value: data}, err
}

// there says whether there is an item that is visible at now.
func (e entry) there(now time.Time) bool {
	return e.record != nil && (e.record.kind == whole || e.record.kind == parted) && !driver.Expired(e.record.expire, now)
}

func (e entry) version() []byte { return e.record.mark.version(e.sequence) }

// item makes an item of an entry that is there. The value of a large one is left out.
func (e entry) item(name driver.Name, headOnly bool) *driver.Item {
	r := e.record
	it := &driver.Item{
		Name: name, Version: e.version(), ExpireAt: driver.ExpireTime(r.expire), ModifiedAt: time.UnixMicro(r.modified).UTC(),
		ContentType: r.contentType, Metadata: r.metadata,
	}
	switch {
	case r.kind == parted:
		it.Size = r.large.size
	case headOnly:
		it.Size = uint64(len(e.value))
	default:
		it.Value = e.value
	}
	return it
}

// token writes any bytes as a part of a subject, with one letter in front so that none is empty. It keeps their order, and
// the longest names still fit into a line of the protocol.
func token(b []byte) string {
	return "k" + base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b)
}

func untoken(s string) ([]byte, bool) {
	if !strings.HasPrefix(s, "k") {
		return nil, false
	}
	b, err := base32.HexEncoding.WithPadding(base32.NoPadding).DecodeString(s[1:])
	return b, err == nil
}

// idSubject is what the subjects of an id's items begin with, without the stream's name.
func idSubject(space driver.Space, id []byte) string {
	return token([]byte(space)) + "." + token(id)
}

// subject is that of an item.
func (i *Instance) subject(space driver.Space, name driver.Name) string {
	return i.stream + "." + idSubject(space, name.ID) + "." + token(name.Key)
}

// nameOf is the name of the item that a subject of the stream is for.
func nameOf(subject string) (driver.Name, bool) {
	parts := strings.Split(subject, ".")
	if len(parts) != 4 {
		return driver.Name{}, false
	}
	id, ok := untoken(parts[2])
	key, ok2 := untoken(parts[3])
	return driver.Name{ID: id, Key: key}, ok && ok2
}
