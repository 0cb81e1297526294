package driver

import (
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
