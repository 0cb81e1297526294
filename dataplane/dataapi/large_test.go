package dataapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strconv"
	"testing"

	"github.com/prism-gateway/prism/dataplane/assembly/statetest"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault"
)

// largeValue is bytes that are the same at each run.
func largeValue(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// writeLarge sends a value in pieces with a checksum in the last message, or what alter makes of the messages.
func (e *env) writeLarge(ctx context.Context, client datav1.KeyValueClient, value []byte, alter func([]*datav1.WriteValueRequest)) (*datav1.WriteValueResponse, error) {
	const piece = 100_000
	sum := sha256.Sum256(value)
	all := []*datav1.WriteValueRequest{{Put: &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Key: []byte("large")}}}
	for len(value) > 0 {
		n := min(piece, len(value))
		all = append(all, &datav1.WriteValueRequest{Chunk: value[:n]})
		value = value[n:]
	}
	all[len(all)-1].Sha256 = sum[:]
	if alter != nil {
		alter(all)
	}
	stream, err := client.WriteValue(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if err := stream.Send(m); err != nil {
			break // CloseAndRecv says why
		}
	}
	return stream.CloseAndRecv()
}

// readLarge is the value from an offset on; nil when there is none.
func (e *env) readLarge(client datav1.KeyValueClient, offset uint64) (item *datav1.Item, size uint64, value []byte) {
	e.t.Helper()
	stream := must[datav1.KeyValue_ReadValueClient](e.t)(client.ReadValue(e.ctx, &datav1.ReadValueRequest{Namespace: e.namespace, Id: []byte("id"), Key: []byte("large"), Offset: offset}))
	for first := true; ; first = false {
		out, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return item, size, value
		}
		if err != nil {
			e.t.Fatalf("read: %v", err)
		}
		if first {
			item, size = out.GetItem(), out.GetSize()
		}
		value = append(value, out.GetChunk()...)
	}
}

// Each case goes through both proxies: one of them forwards where the store has one owner.
var largeCases = []testCase{
	{"KC-10 large_roundtrip", func(e *env) {
		for i, client := range []datav1.KeyValueClient{e.client, e.other} {
			want := largeValue(5<<20 + 17 + i)
			done := must[*datav1.WriteValueResponse](e.t)(e.writeLarge(e.ctx, client, want, nil))
			for _, reader := range []datav1.KeyValueClient{e.client, e.other} {
				item, size, got := e.readLarge(reader, 0)
				if !bytes.Equal(got, want) || size != uint64(len(want)) || !bytes.Equal(item.GetVersion(), done.GetVersion()) {
					e.t.Errorf("%d bytes of %d, version %x; want %d, %x", len(got), size, item.GetVersion(), len(want), done.GetVersion())
				}
				if _, _, got := e.readLarge(reader, 4<<20+1); !bytes.Equal(got, want[4<<20+1:]) {
					e.t.Errorf("from an offset: %d bytes, want %d", len(got), len(want)-4<<20-1)
				}
			}
		}
		_, err := e.client.Get(e.ctx, &datav1.GetRequest{Namespace: e.namespace, Id: []byte("id"), Key: []byte("large")})
		fails(e.t, err, fault.FailedPrecondition, fault.TooLarge, "")
		must[*datav1.WriteValueResponse](e.t)(e.writeLarge(e.ctx, e.other, nil, nil))
		if item, size, got := e.readLarge(e.client, 0); item == nil || size != 0 || len(got) != 0 {
			e.t.Errorf("an empty value: %v, %d bytes", item, size)
		}
	}},
	{"KC-11 large_incomplete_invisible", func(e *env) {
		for _, client := range []datav1.KeyValueClient{e.client, e.other} {
			ctx, giveUp := context.WithCancel(e.ctx)
			stream := must[datav1.KeyValue_WriteValueClient](e.t)(client.WriteValue(ctx))
			for _, m := range []*datav1.WriteValueRequest{
				{Put: &datav1.PutRequest{Namespace: e.namespace, Id: []byte("id"), Key: []byte("large")}}, {Chunk: make([]byte, 1<<20)},
			} {
				if err := stream.Send(m); err != nil {
					e.t.Fatal(err)
				}
			}
			giveUp()
			if _, err := stream.CloseAndRecv(); err == nil {
				e.t.Error("a write that was given up succeeded")
			}
			if item, _, _ := e.readLarge(e.client, 0); item != nil {
				e.t.Errorf("half a value is there: %v", item)
			}
		}
	}},
	{"KC-12 KC-13 a_value_that_is_refused_leaves_the_one_before", func(e *env) {
		before := largeValue(1 << 20)
		must[*datav1.WriteValueResponse](e.t)(e.writeLarge(e.ctx, e.client, before, nil))
		for what, refused := range map[string]struct {
			alter  func(all []*datav1.WriteValueRequest)
			code   fault.Code
			reason fault.Reason
		}{
			"a checksum mismatch":        {func(all []*datav1.WriteValueRequest) { all[2].Chunk = []byte("damaged") }, fault.DataLoss, fault.Checksum},
			"no checksum":                {func(all []*datav1.WriteValueRequest) { all[len(all)-1].Sha256 = nil }, fault.Invalid, fault.Field},
			"a short checksum":           {func(all []*datav1.WriteValueRequest) { all[len(all)-1].Sha256 = []byte("x") }, fault.DataLoss, fault.Checksum},
			"a checksum too early":       {func(all []*datav1.WriteValueRequest) { all[1].Sha256 = make([]byte, 32) }, fault.Invalid, fault.Field},
			"a put in a later message":   {func(all []*datav1.WriteValueRequest) { all[1].Put = all[0].GetPut() }, fault.Invalid, fault.Field},
			"a value in the put":         {func(all []*datav1.WriteValueRequest) { all[0].Put.Value = []byte("x") }, fault.Invalid, fault.Field},
			"a token":                    {func(all []*datav1.WriteValueRequest) { all[0].Put.Token = e.token() }, fault.Invalid, fault.Field},
			"previous":                   {func(all []*datav1.WriteValueRequest) { all[0].Put.ReturnPrevious = true }, fault.Invalid, fault.Field},
			"a namespace that is absent": {func(all []*datav1.WriteValueRequest) { all[0].Put.Namespace = "no-such" }, fault.NotFound, fault.Namespace},
			"no put":                     {func(all []*datav1.WriteValueRequest) { all[0].Put = nil }, fault.Invalid, fault.Field},
			"a condition that fails": {func(all []*datav1.WriteValueRequest) {
				all[0].Put.Condition = &datav1.Condition{Is: &datav1.Condition_Absent{Absent: true}}
			}, fault.Exists, fault.Key},
		} {
			for _, client := range []datav1.KeyValueClient{e.client, e.other} {
				_, err := e.writeLarge(e.ctx, client, largeValue(500_000), refused.alter)
				if err == nil {
					e.t.Fatalf("%s was taken", what)
				}
				fails(e.t, err, refused.code, refused.reason, fault.NotApplied)
			}
		}
		if _, _, got := e.readLarge(e.client, 0); !bytes.Equal(got, before) {
			e.t.Errorf("the value before is %d bytes", len(got))
		}
	}},
}

// TestLargeValuesTakeBoundedMemory moves a value through the API and watches the heap, of both ends (KC-10). PRISM_VALUE_MIB
// says how large it is.
func TestLargeValuesTakeBoundedMemory(t *testing.T) {
	const bound = 64 << 20
	size := int64(128 << 20)
	if text := os.Getenv("PRISM_VALUE_MIB"); text != "" {
		mib, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		size = mib << 20
	}
	p := startProxy(t, "a", nil)
	s := statetest.New(t, 8, p.member("a"))
	s.Backend(&configv1.Backend{Name: "sqlite-main", Type: "sqlite", Endpoints: []string{filepath.Join(t.TempDir(), "data.db")}})
	config := statetest.KeyValue("orders", "sqlite-main", "sqlite")
	config.Patterns[0].Interfaces = offeredBy(t, "sqlite")
	s.Namespace(config)
	p.apply(t, s)
	c, err := client.Dial(client.Config{Endpoints: []string{p.address}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	runtime.GC()
	before, peak := heap(), uint64(0)
	watched := func(r io.Reader) io.Reader { // looks at the heap now and then
		n := 0
		return readerFunc(func(b []byte) (int, error) {
			if n++; n%64 == 0 {
				peak = max(peak, heap())
			}
			return r.Read(b)
		})
	}
	noise := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	written, read := sha256.New(), sha256.New()
	put := &datav1.PutRequest{Namespace: "orders", Id: []byte("a")}
	if _, err := c.WriteValue(t.Context(), put, watched(io.TeeReader(noise(), written))); err != nil {
		t.Fatal(err)
	}
	v, err := c.ReadValue(t.Context(), &datav1.ReadValueRequest{Namespace: "orders", Id: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if n, err := io.Copy(read, watched(v)); n != size || err != nil || !bytes.Equal(read.Sum(nil), written.Sum(nil)) {
		t.Errorf("read %d of %d bytes, %v", n, size, err)
	}
	t.Logf("a value of %d MiB took %d MiB of heap at most", size>>20, (peak-min(peak, before))>>20)
	if peak > before+bound {
		t.Errorf("the heap grew by %d MiB for a value of %d MiB", (peak-before)>>20, size>>20)
	}
}

// heap is what is allocated, in bytes.
func heap() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// readerFunc is a function as a reader.
type readerFunc func([]byte) (int, error)

// Read calls it.
func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
