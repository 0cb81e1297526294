package s3

import (
	"bytes"
	"io"
	"maps"
	"testing"
	"testing/iotest"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

var sizes = []int{0, 1, 100, frameBytes - 1, frameBytes, frameBytes + 1, 2 * frameBytes, 2*frameBytes + 5}

func value(size int) []byte {
	b := make([]byte, size)
	for n := range b {
		b[n] = byte(n * 7)
	}
	return b
}

func TestFramesOfAllSizes(t *testing.T) {
	for _, size := range sizes {
		want := value(size)
		framed := appendFrames(nil, want)
		if got, err := valueSize(uint64(len(framed))); err != nil || got != uint64(size) {
			t.Errorf("%d bytes: the frames tell %d, %v", size, got, err)
		}
		streamed, err := io.ReadAll(newFramer([]byte("head"), iotest.HalfReader(bytes.NewReader(want))))
		if err != nil || !bytes.Equal(streamed, append([]byte("head"), framed...)) {
			t.Errorf("%d bytes: %d bytes streamed, %v", size, len(streamed), err)
		}
		got, err := io.ReadAll(&unframer{from: bytes.NewReader(framed), left: uint64(len(framed))})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: read %d, %v", size, len(got), err)
		}
		if got, err := openFrames(framed); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: opened %d, %v", size, len(got), err)
		}
	}
}

func TestDamageOfFramesIsSeen(t *testing.T) {
	for _, size := range sizes {
		framed := appendFrames(nil, value(size))
		damage := map[string][]byte{"a byte less": framed[:len(framed)-1]}
		for _, at := range []int{0, len(framed) / 2, len(framed) - 1} {
			b := bytes.Clone(framed)
			b[at] ^= 1
			damage["a bit"] = b
		}
		if size > frameBytes {
			damage["a frame less"] = framed[:frameBytes+sumSize]
		}
		for name, b := range damage {
			if _, err := io.ReadAll(&unframer{from: bytes.NewReader(b), left: uint64(len(b))}); !fault.Is(err, fault.Checksum) {
				t.Errorf("%d bytes, %s: read with %v", size, name, err)
			}
			if _, err := openFrames(bytes.Clone(b)); err == nil {
				t.Errorf("%d bytes, %s: opened", size, name)
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	h := &header{
		name: driver.Name{ID: []byte("id\x00"), Key: []byte{}}, modified: 42, contentType: "text/plain", metadata: map[string]string{"a": "b", "": "c"},
	}
	b, f := h.encode()
	if f != nil {
		t.Fatal(f)
	}
	got, length, err := decode(append(bytes.Clone(b), "rest"...))
	if err != nil || length != len(b) || !same(got.name, h.name) || got.modified != 42 || got.contentType != h.contentType || !maps.Equal(got.metadata, h.metadata) {
		t.Errorf("got %+v of %d bytes, %v", got, length, err)
	}
	if other, _ := h.encode(); bytes.Equal(b, other) {
		t.Error("two headers are equal: two objects could have one entity tag")
	}
	for n := range b {
		damaged := bytes.Clone(b)
		damaged[n] ^= 1
		if _, _, err := decode(damaged); err == nil {
			t.Errorf("byte %d damaged: taken", n)
		}
		if _, _, err := decode(b[:n]); err == nil {
			t.Errorf("%d of %d bytes: taken", n, len(b))
		}
	}
	h.metadata = map[string]string{"a": string(make([]byte, maxHeader))}
	if _, f := h.encode(); f == nil || f.Reason != fault.TooLarge {
		t.Errorf("a header that is too long: %v", f)
	}
	if traced, ok := decodeTrace(trace(7)); !ok || traced != 7 {
		t.Errorf("a trace became %d, %v", traced, ok)
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := (&header{name: driver.Name{ID: []byte("a")}}).encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		decode(b)
		decodeTrace(b)
		openFrames(b)
	})
}
