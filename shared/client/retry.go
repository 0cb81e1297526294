package client

import (
	"strings"
	"sync"
	"time"

	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// reads begin the names of the methods that change nothing, or nothing more when they are called again.
var reads = []string{"Get", "List", "Scan", "BatchGet", "Describe", "Plan", "Diff", "NamespaceHistory", "CreateSession", "RefreshSession"}

// repeat decides whether a failed call may be done again, and after how long at least.
func repeat(method string, args any, err error, sent bool) (wait time.Duration, again bool) {
	f := faultgrpc.FromStatus(err)
	switch {
	case f.Code == fault.Unavailable, f.Reason == fault.TxConflict:
	case f.Code == fault.Exhausted && f.RetryAfter > 0:
	default:
		return 0, false
	}
	safe := !sent || isRead(method) || f.Outcome == fault.NotApplied || hasToken(args)
	return f.RetryAfter, safe
}

func isRead(method string) bool {
	name := method[strings.LastIndexByte(method, '/')+1:]
	for _, r := range reads {
		if strings.HasPrefix(name, r) {
			return true
		}
	}
	return false
}

// hasToken reports whether the server does the request once, however often it arrives.
func hasToken(args any) bool {
	with, ok := args.(interface {
		GetToken() *datav1.IdempotencyToken
	})
	return ok && with.GetToken() != nil
}

// moved reports whether an error is a reason to ask again who owns a namespace.
func moved(err error) bool {
	f := faultgrpc.FromStatus(err)
	return f.Code == fault.Unavailable
}

const (
	budgetSize = 10
	budgetGain = 0.1 // of a repeat for each call that succeeds
)

// budget bounds repeats to a share of the calls that succeed, with a small stock for the start.
type budget struct {
	// mu guards left.
	mu   sync.Mutex
	left float64
}

func newBudget() *budget { return &budget{left: budgetSize} }

func (b *budget) earn() {
	b.mu.Lock()
	b.left = min(b.left+budgetGain, budgetSize)
	b.mu.Unlock()
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
