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
	return keyvalue.Read{Consistency: keyvalue.Consistency(c), HeadOnly: headOnly}, nil
}

// writeOf makes the part of a write that all kinds have. path is that of the write in the request, with its dot.
func writeOf(r *routing.Route, op driver.Op, name driver.Name, c *datav1.Condition, e *datav1.Expiry, token *datav1.IdempotencyToken, path string) (keyvalue.Write, error) {
	w := keyvalue.Write{Op: op, Name: name}
	if _, err := store(r); err != nil {
		return w, err
	}
	if token != nil {
		return w, keyvalue.Missing(keyvalue.Idempotency)
	}
	bad := func(field, text string) (keyvalue.Write, error) {
		return w, keyvalue.Invalid(fault.Violation{Field: path + field, Rule: "const", Text: text})
	}
	switch is := c.GetIs().(type) {
	case nil:
		if c != nil { // of a later version of the API, perhaps: to write all the same would be wrong
			return bad("condition", "says nothing that this build knows")
		}
	case *datav1.Condition_Absent:
		if w.Condition = driver.IfAbsent; !is.Absent {
			return bad("condition.absent", "can only be true")
		}
	case *datav1.Condition_Present:
		if w.Condition = driver.IfPresent; !is.Present {
			return bad("condition.present", "can only be true")
		}
	case *datav1.Condition_Version:
		w.Condition, w.Version = driver.IfVersion, is.Version
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

func itemOf(item *driver.Item) *datav1.Item {
	if item == nil {
		return nil
	}
	return &datav1.Item{
		Id: item.ID, Key: item.Key, Value: item.Value, Version: item.Version, ExpireAt: timeOf(item.ExpireAt), ModifiedAt: timeOf(item.ModifiedAt),
		ContentType: item.ContentType, Metadata: item.Metadata,
	}
}

func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
