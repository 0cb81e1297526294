package driver

import (
	"context"
	"io"

	"github.com/prism-gateway/prism/shared/fault"
)

// LargeValues is the capability keyvalue.large: values that are written and read in parts, of any size up to MaxLarge
// and in bounded memory. They are items as all others, with versions, expiries and conditions; a Put replaces one, a Get
// of one is the fault of TooLarge, and scans leave their values out and say their Size.
type LargeValues interface {
	// ReadValue opens an item's value from a byte on; nil when there is no item. It works for values of all sizes. What
	// is read is one version, whole: when the item is replaced or removed while it is read, reading goes on or fails with
	// fault Conflict, reason VERSION_MISMATCH. Damage is fault DataLoss, reason CHECKSUM. The caller closes the value.
	ReadValue(ctx context.Context, space Space, name Name, offset uint64) (*Value, error)
	// WriteValue writes an item whose value is what r yields up to io.EOF; w.Value is not used. It is visible when it is
	// complete, at once and whole. When r or the store fails nothing changes, the error is r's or a fault, and no part is
	// left behind for longer than an hour. w.Condition holds at the moment when it becomes visible.
	WriteValue(ctx context.Context, space Space, w Write, r io.Reader) (Written, error)
}

// MaxLarge is the largest value, in bytes.
const MaxLarge = 5 << 30

// Value is a value being read.
type Value struct {
	Item          // without its Value
	io.ReadCloser // the bytes from the offset on
}

// TooLarge is the fault of reading in one piece what was written in parts.
func TooLarge(size uint64) error {
	return fault.Newf(fault.FailedPrecondition, fault.TooLarge, "the value is %d bytes long; read it with ReadValue", size)
}
