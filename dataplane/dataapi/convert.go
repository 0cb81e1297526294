package dataapi

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/pattern/keyvalue"
	"github.com/prism-gateway/prism/dataplane/routing"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

// The rules of the messages that their Go types do not hold are checked here; those of names, values and sizes are the
// pattern's. Both are native code: an interpreter of rules would cost more than the rest of the call.

func readOf(c datav1.Consistency, atLeast []byte, headOnly bool) (keyvalue.Read, error) {
	switch {
	case c < datav1.Consistency_CONSISTENCY_UNSPECIFIED || c > datav1.Consistency_CONSISTENCY_STRONG:
		return keyvalue.Read{}, keyvalue.Invalid(fault.Violation{Field: "consistency", Rule: "enum.defined_only", Text: fmt.Sprintf("is %d, which is no level", c)})
	case len(atLeast) > keyvalue.MaxCommitTokenBytes:
		return keyvalue.Read{}, keyvalue.Invalid(fault.Violation{Field: "at_least", Rule: "bytes.max_len", Text: fmt.Sprintf("is %d bytes long, want at most %d", len(atLeast), keyvalue.MaxCommitTokenBytes)})
	}
	return keyvalue.Read{Consistency: keyvalue.Consistency(c), AtLeast: atLeast, HeadOnly: headOnly}, nil
}

// writeOf makes the part of a write that all kinds have. path is that of the write in the request, with its dot.
func writeOf(r *routing.Route, op driver.Op, name driver.Name, c *datav1.Condition, e *datav1.Expiry, token *datav1.IdempotencyToken, path string) (keyvalue.Write, error) {
	w := keyvalue.Write{Op: op, Name: name}
	if _, err := store(r); err != nil {
		return w, err
	}
	bad := func(field, text string) (keyvalue.Write, error) {
		return w, keyvalue.Invalid(fault.Violation{Field: path + field, Rule: "const", Text: text})
	}
	var err error
	if w.Token, err = tokenOf(token); err != nil {
		return w, err
	}
	if w.Condition, w.Version, err = conditionOf(c, path); err != nil {
		return w, err
	}
	switch is := e.GetIs().(type) {
	case nil:
		if e != nil {
			return bad("expiry", "says nothing that this build knows")
		}
	case *datav1.Expiry_Ttl:
		if is.Ttl.CheckValid() != nil {
			return bad("expiry.ttl", "is no duration")
		}
		w.Expiry = keyvalue.Expiry{Kind: keyvalue.ExpiryAfter, TTL: is.Ttl.AsDuration()}
	case *datav1.Expiry_At:
		if is.At.CheckValid() != nil {
			return bad("expiry.at", "is no time")
		}
		w.Expiry = keyvalue.Expiry{Kind: keyvalue.ExpiryAt, At: is.At.AsTime()}
	case *datav1.Expiry_Keep:
		if w.Expiry.Kind = keyvalue.ExpiryKeep; !is.Keep {
			return bad("expiry.keep", "can only be true")
		}
	case *datav1.Expiry_Never:
		if w.Expiry.Kind = keyvalue.ExpiryNever; !is.Never {
			return bad("expiry.never", "can only be true")
		}
	}
	return w, nil
}

// conditionOf is a condition; path is that of its owner, with its dot.
func conditionOf(c *datav1.Condition, path string) (driver.Condition, []byte, error) {
	bad := func(field, text string) (driver.Condition, []byte, error) {
		return driver.Always, nil, keyvalue.Invalid(fault.Violation{Field: path + field, Rule: "const", Text: text})
	}
	switch is := c.GetIs().(type) {
	case nil:
		if c != nil { // of a later version of the API, perhaps: to write all the same would be wrong
			return bad("condition", "says nothing that this build knows")
		}
	case *datav1.Condition_Absent:
		if !is.Absent {
			return bad("condition.absent", "can only be true")
		}
		return driver.IfAbsent, nil, nil
	case *datav1.Condition_Present:
		if !is.Present {
			return bad("condition.present", "can only be true")
		}
		return driver.IfPresent, nil, nil
	case *datav1.Condition_Version:
		return driver.IfVersion, is.Version, nil
	}
	return driver.Always, nil, nil
}

// tokenOf is an idempotency token; nil stays nil.
func tokenOf(t *datav1.IdempotencyToken) (*keyvalue.Token, error) {
	switch {
	case t == nil:
		return nil, nil
	case len(t.GetNonce()) != len(keyvalue.Token{}.Nonce):
		return nil, keyvalue.Invalid(fault.Violation{Field: "token.nonce", Rule: "bytes.len", Text: fmt.Sprintf("is %d bytes long, want 16", len(t.GetNonce()))})
	case t.GetMadeAt() == nil || t.GetMadeAt().CheckValid() != nil:
		return nil, keyvalue.Invalid(fault.Violation{Field: "token.made_at", Rule: "required", Text: "is no time"})
	}
	return &keyvalue.Token{Nonce: [16]byte(t.GetNonce()), MadeAt: t.GetMadeAt().AsTime()}, nil
}

// writesOf are the writes of a batch or a transaction.
func writesOf(r *routing.Route, in []*datav1.Write) ([]keyvalue.Write, error) {
	writes := make([]keyvalue.Write, len(in))
	for i, one := range in {
		path := fmt.Sprintf("writes[%d].", i)
		var err error
		switch op := one.GetOp().(type) {
		case *datav1.Write_Put:
			p := op.Put
			writes[i], err = writeOf(r, driver.Put, driver.Name{ID: p.GetId(), Key: p.GetKey()}, p.GetCondition(), p.GetExpiry(), nil, path+"put.")
			writes[i].Value, writes[i].ContentType, writes[i].Metadata = p.GetValue(), p.GetContentType(), p.GetMetadata()
		case *datav1.Write_Delete:
			d := op.Delete
			writes[i], err = writeOf(r, driver.Delete, driver.Name{ID: d.GetId(), Key: d.GetKey()}, d.GetCondition(), nil, nil, path+"delete.")
		default:
			err = keyvalue.Invalid(fault.Violation{Field: path + "op", Rule: "required", Text: "is missing"})
		}
		if err != nil {
			return nil, err
		}
	}
	return writes, nil
}

func itemOf(item *driver.Item) *datav1.Item {
	if item == nil {
		return nil
	}
	return &datav1.Item{
		Id: item.ID, Key: item.Key, Value: item.Value, Version: item.Version, ExpireAt: timeOf(item.ExpireAt), ModifiedAt: timeOf(item.ModifiedAt),
		ContentType: item.ContentType, Metadata: item.Metadata, Size: item.Size,
	}
}

// items makes the items of one answer, in a few large pieces of memory instead of many small ones.
type items struct {
	made  []datav1.Item
	times []timestamppb.Timestamp
}

func newItems(n int) *items {
	return &items{made: make([]datav1.Item, n), times: make([]timestamppb.Timestamp, n)}
}

// of is itemOf.
func (s *items) of(item *driver.Item) *datav1.Item {
	if item == nil || len(s.made) == 0 {
		return itemOf(item)
	}
	out := &s.made[0]
	s.made = s.made[1:]
	out.Id, out.Key, out.Value, out.Version, out.ExpireAt = item.ID, item.Key, item.Value, item.Version, timeOf(item.ExpireAt)
	out.ContentType, out.Metadata, out.Size = item.ContentType, item.Metadata, item.Size
	if !item.ModifiedAt.IsZero() {
		out.ModifiedAt = &s.times[0]
		s.times = s.times[1:]
		out.ModifiedAt.Seconds, out.ModifiedAt.Nanos = item.ModifiedAt.Unix(), int32(item.ModifiedAt.Nanosecond())
	}
	return out
}

func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
