package s3

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// An object holds a header and then the value in frames. The header:
//
//	1 byte    format
//	2 bytes   length of the header
//	16 bytes  a random number, which is the item's version
//	8 bytes   when the item was written, microseconds since 1970
//	          id, key, content type, and the metadata's names and values: each string behind its length
//	8 bytes   sum of all this
//
// What was removed leaves an object of another kind, of a length that no other has: the format, a random number, and when
// that was, in microseconds since 1970.
//
// A frame is frameBytes of the value, fewer in the last, and their sum. There is at least one, and the last has a sum of
// another kind, so that an object that was cut shows.
const (
	format     = 1
	removed    = 2 // the format of what a removed item leaves
	lengthAt   = 1
	nonceAt    = 3
	modifiedAt = 19
	stringsAt  = 27
	sumSize    = 8
	traceSize  = 25 // of what a removed item leaves
	frameBytes = 1 << 20
	// maxHeader bounds the header. It is more than what names and metadata that the API admits can take, and how much of an
	// object is read to see what it is.
	maxHeader = 8 << 10
	lastFrame = 1 // the seed of its sum
)

var (
	errHeader = errors.New("the object does not begin with a record of Prism")
	errFrame  = errors.New("the sum of a part of the value is another than when it was written")
)

// header is what an object begins with.
type header struct {
	version     []byte
	name        driver.Name
	modified    int64
	contentType string
	metadata    map[string]string
}

// encode makes the object's beginning, and a version of its own.
func (h *header) encode() ([]byte, *fault.Fault) {
	b := make([]byte, stringsAt, 256)
	b[0] = format
	rand.Read(b[nonceAt:modifiedAt])
	h.version = bytes.Clone(b[nonceAt:modifiedAt])
	binary.BigEndian.PutUint64(b[modifiedAt:], uint64(h.modified))
	b = appendString(b, string(h.name.ID))
	b = appendString(b, string(h.name.Key))
	b = appendString(b, h.contentType)
	for k, v := range h.metadata {
		b = appendString(appendString(b, k), v)
	}
	if len(b)+sumSize > maxHeader {
		return nil, fault.Newf(fault.Invalid, fault.TooLarge, "name, content type and metadata are longer than the %d bytes that the backend takes", maxHeader).
			WithOutcome(fault.NotApplied)
	}
	binary.BigEndian.PutUint16(b[lengthAt:], uint16(len(b)+sumSize))
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b)), nil
}

// decode reads the beginning of an object and says how long it is.
func decode(b []byte) (*header, int, error) {
	if len(b) < stringsAt || b[0] != format {
		return nil, 0, errHeader
	}
	length := int(binary.BigEndian.Uint16(b[lengthAt:]))
	if length < stringsAt+sumSize || length > len(b) || binary.BigEndian.Uint64(b[length-sumSize:]) != xxhash.Sum64(b[:length-sumSize]) {
		return nil, 0, errHeader
	}
	h := &header{version: bytes.Clone(b[nonceAt:modifiedAt]), modified: int64(binary.BigEndian.Uint64(b[modifiedAt:]))}
	var all []string
	for rest := b[stringsAt : length-sumSize]; len(rest) > 0; {
		var s string
		var ok bool
		if s, rest, ok = cutString(rest); !ok {
			return nil, 0, errHeader
		}
		all = append(all, s)
	}
	if len(all) < 3 || len(all)%2 == 0 {
		return nil, 0, errHeader
	}
	h.name, h.contentType = driver.Name{ID: []byte(all[0]), Key: []byte(all[1])}, all[2]
	for n := 3; n < len(all); n += 2 {
		if h.metadata == nil {
			h.metadata = map[string]string{}
		}
		h.metadata[all[n]] = all[n+1]
	}
	return h, length, nil
}

// trace makes the object that a removed item leaves.
func trace(modified int64) []byte {
	b := make([]byte, traceSize)
	b[0] = removed
	rand.Read(b[1:17])
	binary.BigEndian.PutUint64(b[17:], uint64(modified))
	return b
}

// decodeTrace says when an item was removed that left an object.
func decodeTrace(b []byte) (modified int64, ok bool) {
	if len(b) != traceSize || b[0] != removed {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(b[17:])), true
}

// item makes an item without its value.
func (h *header) item(size uint64) *driver.Item {
	return &driver.Item{
		Name: h.name, Version: h.version, Size: size, ModifiedAt: time.UnixMicro(h.modified).UTC(), ContentType: h.contentType, Metadata: h.metadata,
	}
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

// valueSize is how long a value is whose frames have that many bytes.
func valueSize(framed uint64) (uint64, error) {
	frames := (framed + frameBytes + sumSize - 1) / (frameBytes + sumSize)
	if framed < sumSize || framed-(frames-1)*(frameBytes+sumSize) < sumSize {
		return 0, errFrame
	}
	return framed - frames*sumSize, nil
}

func sum(data []byte, last bool) uint64 {
	if !last {
		return xxhash.Sum64(data)
	}
	d := xxhash.NewWithSeed(lastFrame)
	d.Write(data)
	return d.Sum64()
}

// appendFrames appends a whole value.
func appendFrames(b, value []byte) []byte {
	for {
		n := min(len(value), frameBytes)
		frame, rest := value[:n], value[n:]
		b = append(b, frame...)
		b = binary.BigEndian.AppendUint64(b, sum(frame, len(rest) == 0))
		if value = rest; len(value) == 0 {
			return b
		}
	}
}

// openFrames takes the sums out of a whole value, in place.
func openFrames(framed []byte) ([]byte, error) {
	value := framed[:0]
	for {
		n := min(len(framed), frameBytes+sumSize) - sumSize
		if n < 0 {
			return nil, errFrame
		}
		frame, rest := framed[:n], framed[n+sumSize:]
		if binary.BigEndian.Uint64(framed[n:]) != sum(frame, len(rest) == 0) {
			return nil, errFrame
		}
		value = append(value, frame...)
		if framed = rest; len(framed) == 0 {
			return value, nil
		}
	}
}

// framer yields a header and then the frames of what a reader yields. It is used by one goroutine.
type framer struct {
	from io.Reader
	max  uint64 // bytes of the value
	rest []byte // what was made and not yielded
	next []byte // of the value, read to see whether there is more
	last bool   // next is all
	done bool
	err  error
}

func newFramer(header []byte, from io.Reader) *framer {
	return &framer{from: from, max: driver.MaxLarge, rest: header}
}

// Read yields the next bytes.
func (f *framer) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.err != nil {
			return 0, f.err
		}
		if f.done {
			return 0, io.EOF
		}
		f.frame()
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// frame makes the next frame.
func (f *framer) frame() {
	if f.next == nil {
		if f.next, f.last, f.err = f.more(); f.err != nil {
			return
		}
	}
	frame, last := f.next, f.last
	if !last {
		if f.next, f.last, f.err = f.more(); f.err != nil {
			return
		}
		last = f.last && len(f.next) == 0
	}
	f.done = last
	f.rest = binary.BigEndian.AppendUint64(frame, sum(frame, last))
}

// more reads up to a frame's worth; end says that it is less.
func (f *framer) more() (b []byte, end bool, _ error) {
	b = make([]byte, frameBytes, frameBytes+sumSize)
	n, err := io.ReadFull(f.from, b)
	if end = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !end {
		return nil, false, err
	}
	if uint64(n) > f.max {
		return nil, false, fault.Newf(fault.Invalid, fault.TooLarge, "the value is longer than %d bytes", uint64(driver.MaxLarge)).WithOutcome(fault.NotApplied)
	}
	f.max -= uint64(n)
	return b[:n], end, nil
}

// unframer yields the value of frames. It is used by one goroutine.
type unframer struct {
	from  io.Reader
	left  uint64 // bytes of frames
	frame [frameBytes + sumSize]byte
	rest  []byte
}

// Read yields the next bytes of frames whose sums are right.
func (u *unframer) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		if u.left == 0 {
			return 0, io.EOF
		}
		b := u.frame[:min(u.left, uint64(len(u.frame)))]
		if _, err := io.ReadFull(u.from, b); err != nil {
			return 0, err
		}
		u.left -= uint64(len(b))
		n := len(b) - sumSize
		if n < 0 || binary.BigEndian.Uint64(b[n:]) != sum(b[:n], u.left == 0) {
			return 0, damaged(errFrame)
		}
		u.rest = b[:n]
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}
