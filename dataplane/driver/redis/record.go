package redis

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// What is stored for an item, in this order; the scripts know the first four:
//
//	1 byte    format
//	8 bytes   expiry, milliseconds since 1970, 0 for never
//	8 bytes   last write, microseconds since 1970
//	16 bytes  version
//	4 bytes   length of what follows up to the value
//	          content type and metadata: each string behind its length
//	          value
const (
	format     = 1
	expireAt   = 1
	modifiedAt = 9
	versionAt  = 17
	metaLenAt  = 33
	metaAt     = 37
)

var errRecord = errors.New("the stored record cannot be read")

// encode makes the record of an item with room in front for nothing else: one allocation.
func encode(expire int64, modified time.Time, version []byte, contentType string, metadata map[string]string, value []byte) []byte {
	size := metaAt + len(value)
	meta := contentType != "" || len(metadata) > 0
	if meta {
		size += len(contentType) + 16
		for k, v := range metadata {
			size += len(k) + len(v) + 8
		}
	}
	b := make([]byte, metaAt, size)
	b[0] = format
	binary.BigEndian.PutUint64(b[expireAt:], uint64(expire))
	binary.BigEndian.PutUint64(b[modifiedAt:], uint64(modified.UnixMicro()))
	copy(b[versionAt:], version)
	if meta {
		b = appendString(b, contentType)
		for k, v := range metadata {
			b = appendString(appendString(b, k), v)
		}
		binary.BigEndian.PutUint32(b[metaLenAt:], uint32(len(b)-metaAt))
	}
	return append(b, value...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decode reads a record into an item whose slices are parts of b. It returns nil for an item that is expired.
func decode(b []byte, name driver.Name, now time.Time, headOnly bool) (*driver.Item, error) {
	if len(b) < metaAt || b[0] != format {
		return nil, errRecord
	}
	expire := int64(binary.BigEndian.Uint64(b[expireAt:]))
	if driver.Expired(expire, now) {
		return nil, nil
	}
	metaLen := int(binary.BigEndian.Uint32(b[metaLenAt:]))
	if metaLen > len(b)-metaAt {
		return nil, errRecord
	}
	value := metaAt + metaLen
	it := &driver.Item{
		Name: name, Version: slices.Clip(b[versionAt:metaLenAt]), ExpireAt: driver.ExpireTime(expire),
		ModifiedAt: time.UnixMicro(int64(binary.BigEndian.Uint64(b[modifiedAt:]))).UTC(),
	}
	if !headOnly {
		it.Value = b[value:]
	}
	if metaLen == 0 {
		return it, nil
	}
	meta := b[metaAt:value]
	var ok bool
	if it.ContentType, meta, ok = cutString(meta); !ok {
		return nil, errRecord
	}
	for len(meta) > 0 {
		var k, v string
		if k, meta, ok = cutString(meta); ok {
			v, meta, ok = cutString(meta)
		}
		if !ok {
			return nil, errRecord
		}
		if it.Metadata == nil {
			it.Metadata = map[string]string{}
		}
		it.Metadata[k] = v
	}
	return it, nil
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return "", nil, false
	}
	return string(b[size : size+int(n)]), b[size+int(n):], true
}

// tagLen is the length of what all keys begin with: a hash tag and the kind.
const tagLen = 11

// itemKey is the key of an item. The hash tag is made of a hash, and lengths stand in front of the names, so the names
// may hold any byte.
func itemKey(space driver.Space, name driver.Name) string {
	b := make([]byte, 0, 256)
	return string(append(appendID(b, 'i', space, name.ID), name.Key...))
}

// indexKey is the key of the sorted set of an id's keys.
func indexKey(space driver.Space, id []byte) string {
	b := make([]byte, 0, 256)
	return string(appendID(b, 'x', space, id))
}

// tokenKey is the key of a token, beside the items that it is for.
func tokenKey(space driver.Space, id []byte, t *driver.Token) string {
	b := make([]byte, 0, 256)
	return string(append(appendID(b, 't', space, id), t.Nonce[:]...))
}

// scratchKey is a key that scripts use while they run.
func scratchKey(space driver.Space, id []byte) string {
	b := make([]byte, 0, 256)
	return string(appendID(b, 's', space, id))
}

func appendID(b []byte, kind byte, space driver.Space, id []byte) []byte {
	b = append(b, "{00000000}"...)
	b = append(b, kind)
	b = appendString(b, string(space))
	b = binary.AppendUvarint(b, uint64(len(id)))
	b = append(b, id...)
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], uint32(xxhash.Sum64(b[tagLen:])))
	hex.Encode(b[1:9], sum[:])
	return b
}

// indexPattern matches the index keys of a space, for SCAN.
func indexPattern(space driver.Space) string {
	pattern := []byte("{????????}x")
	for _, c := range appendString(nil, string(space)) {
		switch c {
		case '*', '?', '[', ']', '\\', '^', '-':
			pattern = append(pattern, '\\')
		}
		pattern = append(pattern, c)
	}
	return string(append(pattern, '*'))
}

// idOf is the id in an index key of a space.
func idOf(key string, space driver.Space) ([]byte, bool) {
	if len(key) < tagLen {
		return nil, false
	}
	inSpace, rest, ok := cutString([]byte(key[tagLen:]))
	if !ok || inSpace != string(space) {
		return nil, false
	}
	id, rest, ok := cutString(rest)
	return []byte(id), ok && len(rest) == 0
}
