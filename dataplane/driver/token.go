package driver

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/prism-gateway/prism/shared/fault"
)

// Token makes a write be done once. It is for drivers that declare keyvalue.idempotency: before anything else, also
// before conditions, they look for the nonce among those of the id, and remember it with the write's result in the
// same transaction as the write. What was refused is not remembered.
type Token struct {
	// Nonce names the write among those of its id.
	Nonce [16]byte
	// Request tells requests apart: see Reused.
	Request [16]byte
	// Until is how long the nonce must be remembered, by the proxy's clock; longer is no harm.
	Until time.Time
}

// Reused is the fault of a nonce that stands for another request.
func Reused() error {
	return fault.New(fault.Invalid, fault.TokenReused, "the idempotency token was used for another request").WithOutcome(fault.NotApplied)
}

// Done is what a write with a token did, in the form in which drivers may keep it: one result for each write, and a
// counter's sum.
type Done struct {
	Results []Written
	Sum     int64
}

// Encode makes bytes of it.
func (d Done) Encode() ([]byte, error) { return json.Marshal(d) }

// DecodeDone reads what Encode made. All results are marked as those of an earlier write.
func DecodeDone(data []byte) (Done, error) {
	var d Done
	if err := json.Unmarshal(data, &d); err != nil {
		return Done{}, fault.Wrap(fmt.Errorf("a remembered result: %w", err), fault.DataLoss, fault.Checksum, "the stored result cannot be read")
	}
	for n := range d.Results {
		d.Results[n].Duplicate = true
	}
	return d, nil
}
