package s3

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// An object's name is <prefix><space>/<id>/k<key>-.
//
// Ids and keys are written in 64 letters that stand in the order of their codes, so that the names of an id's objects are in
// the order of their keys. No part between two slashes is longer than 255 letters, which is what stores that keep objects
// as files can take: long keys have slashes after every 240 letters. The dash at the end stands before all letters and the
// slash, so a key comes before those that begin with it, and no object's name is the directory of another.
//
// S3 ends names at 1,024 bytes, so a long id is written as its hash, and of a long key only the beginning, followed by the
// hash of all of it. The record has the whole name.
const (
	plainID     = 180  // bytes of an id; longer ones are hashed
	plainKey    = 360  // bytes of a key, a multiple of 3; of longer ones the rest is hashed
	maxSegment  = 240  // letters of a key between two slashes
	maxName     = 1024 // bytes
	endOfKey    = "-"
	restOfKey   = "/~"
	idMark      = "i"
	idHashMark  = "h"
	keyMark     = "k"
	afterSlash  = "0" // the letter after the slash
	hashLetters = 43  // of a SHA-256
)

// letters keeps the order of what it encodes.
var letters = base64.NewEncoding("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~").WithPadding(base64.NoPadding).Strict()

// plainLetters is a key of plainKey bytes, of which only the length matters.
var plainLetters = strings.TrimPrefix(keySegments(make([]byte, plainKey)), keyMark)

func hashed(b []byte) string {
	sum := sha256.Sum256(b)
	return letters.EncodeToString(sum[:])
}

// idSegment is the part of the name that stands for an id.
func idSegment(id []byte) string {
	if len(id) > plainID {
		return idHashMark + hashed(id)
	}
	return idMark + letters.EncodeToString(id)
}

var errName = errors.New("the object has a name that Prism did not give")

// idOf is the id of a segment; nil when the segment has only its hash.
func idOf(segment string) ([]byte, error) {
	switch {
	case strings.HasPrefix(segment, idHashMark) && len(segment) == len(idHashMark)+hashLetters:
		return nil, nil
	case strings.HasPrefix(segment, idMark):
		if id, err := letters.DecodeString(segment[len(idMark):]); err == nil && len(id) > 0 {
			return id, nil
		}
	}
	return nil, errName
}

// keySegments is what the names of a key and of all that come after it are not before, without its end.
func keySegments(key []byte) string {
	text := letters.EncodeToString(key[:min(len(key), plainKey)])
	var b strings.Builder
	b.WriteString(keyMark)
	for len(text) > maxSegment {
		b.WriteString(text[:maxSegment])
		b.WriteByte('/')
		text = text[maxSegment:]
	}
	b.WriteString(text)
	return b.String()
}

// keyPath is the part of the name that stands for a key.
func keyPath(key []byte) string {
	if len(key) > plainKey {
		return keySegments(key) + restOfKey + hashed(key) + endOfKey
	}
	return keySegments(key) + endOfKey
}

// keyOf is the key of a path. long says that it is only the key's beginning.
func keyOf(path string) (key []byte, long bool, err error) {
	text, ok := strings.CutPrefix(path, keyMark)
	text, ok2 := strings.CutSuffix(text, endOfKey)
	if !ok || !ok2 {
		return nil, false, errName
	}
	if long = len(text) == len(plainLetters)+len(restOfKey)+hashLetters; long {
		if !strings.HasPrefix(text[len(plainLetters):], restOfKey) {
			return nil, false, errName
		}
		text = text[:len(plainLetters)]
	}
	key, err = letters.DecodeString(strings.ReplaceAll(text, "/", ""))
	if err != nil || (long && len(key) != plainKey) || keySegments(key) != keyMark+text {
		return nil, false, errName
	}
	return key, long, nil
}

// spacePath is what the names of a space's objects begin with.
func (i *Instance) spacePath(space driver.Space) string { return i.prefix + string(space) + "/" }

// idPath is what the names of an id's objects begin with.
func (i *Instance) idPath(space driver.Space, id []byte) string {
	return i.spacePath(space) + idSegment(id) + "/"
}

// object is the name of an item's object.
func (i *Instance) object(space driver.Space, name driver.Name) string {
	return i.idPath(space, name.ID) + keyPath(name.Key)
}

func same(a, b driver.Name) bool { return bytes.Equal(a.ID, b.ID) && bytes.Equal(a.Key, b.Key) }

func cloned(n driver.Name) driver.Name {
	return driver.Name{ID: append([]byte{}, n.ID...), Key: append([]byte{}, n.Key...)}
}
