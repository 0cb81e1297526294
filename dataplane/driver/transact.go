package driver

import (
	"context"
	"encoding/base64"
	"strconv"

	"github.com/prism-gateway/prism/shared/fault"
)

// MaxOperations bounds the checks and writes of a transaction together.
const MaxOperations = 100

// Transactor is the capability keyvalue.transact.
type Transactor interface {
	// Transact does all or nothing, at one serial point with all other writes of the id. A check or a write's own
	// condition that does not hold is the fault of CheckFailed. A conflict with others is the driver's to try again, a
	// bounded number of times; then fault Conflict, reason TX_CONFLICT, not applied.
	Transact(ctx context.Context, space Space, t Transaction) (Transacted, error)
}

// Transaction is checks and writes of one id. First all checks are made, then the writes one after the other: a later
// write sees an earlier one, also in its condition.
type Transaction struct {
	ID     []byte
	Checks []Check
	// Writes are puts and deletes of items of ID, without tokens of their own and without Previous.
	Writes []Write
	// Token is for keyvalue.idempotency; nil: none.
	Token *Token
}

// Check is what must hold of an item.
type Check struct {
	Key       []byte
	Condition Condition // not Always
	Version   []byte    // for IfVersion
}

// Transacted is what a transaction did.
type Transacted struct {
	// Results are those of the writes, in their order, each as it was at its turn.
	Results []Written
	// Duplicate says that an earlier transaction with the same token did it.
	Duplicate bool
}

// Failed is the fault of the check for an item whose version is current, nil when there is none, or nil when it holds.
// place is that of the check in its transaction.
func (c Check) Failed(current []byte, place int) error {
	if (Write{Condition: c.Condition, Version: c.Version}).Refusal(current) == nil {
		return nil
	}
	return CheckFailed(current, place)
}

// CheckFailed is the fault of an operation of a transaction whose condition does not hold: the metadata has index, its
// place among the checks and then the writes, and version (base64 std) when there is an item.
func CheckFailed(current []byte, place int) error {
	f := fault.Newf(fault.Conflict, fault.CheckFailed, "operation %d of the transaction does not hold", place).
		With("index", strconv.Itoa(place)).WithOutcome(fault.NotApplied)
	if current != nil {
		f = f.With("version", base64.StdEncoding.EncodeToString(current))
	}
	return f
}
