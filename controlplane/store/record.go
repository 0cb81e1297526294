package store

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"
)

// Most changes of a snapshot come from few requests, each with one author, message, request id and trace. As stored, a change
// leaves these out where they are those of the change before, so that the largest change allowed fits into one record.

// encodeRecord makes changes those of rec, which nobody else has yet, and returns its bytes.
func encodeRecord(rec *recordv1.Snapshot, changes []*recordv1.Change) (string, error) {
	rec.Changes = make([]*recordv1.Change, len(changes))
	var before *recordv1.Change
	for i, c := range changes {
		rec.Changes[i] = shortened(before, c)
		before = c
	}
	data, err := encode(rec)
	rec.Changes = changes
	return data, err
}

// decodeRecord reads what encodeRecord wrote.
func decodeRecord(key string, data []byte) (*recordv1.Snapshot, error) {
	rec, err := decode[recordv1.Snapshot](key, data)
	if err != nil {
		return nil, err
	}
	var before *recordv1.Change
	for _, c := range rec.Changes {
		if c.SameNote {
			c.Author, c.Message, c.RequestId = before.GetAuthor(), before.GetMessage(), before.GetRequestId()
			c.TraceParent = before.GetTraceParent()
			c.SameNote = false
		}
		before = c
	}
	return rec, nil
}

// shortened is a change as it is stored after another, which is nil for the first.
func shortened(before, c *recordv1.Change) *recordv1.Change {
	if before == nil || before.Author != c.Author || before.Message != c.Message || before.RequestId != c.RequestId ||
		before.TraceParent != c.TraceParent {
		return c
	}
	return &recordv1.Change{Kind: c.Kind, Name: c.Name, Before: c.Before, After: c.After, ToVersion: c.ToVersion, InRelease: c.InRelease, SameNote: true}
}

// storedSize is how many bytes a change adds to a record in which it comes after another. Text that is not UTF-8 is an
// error.
func storedSize(before, c *recordv1.Change) (int, error) {
	data, err := proto.Marshal(shortened(before, c))
	return 1 + protowire.SizeBytes(len(data)), err
}
