package sqlite

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/prism-gateway/prism/shared/fault"
)

func closedFault() *fault.Fault {
	return fault.New(fault.Unavailable, fault.Draining, "the backend is closed").WithOutcome(fault.NotApplied)
}

// unsent is the fault of a call whose context ended before it began.
func unsent(err error) *fault.Fault {
	f := fault.From(err)
	if f.Code == fault.DeadlineExceeded {
		f = fault.Wrap(err, fault.DeadlineExceeded, fault.Pool, "the time ran out while waiting for the store")
	}
	return f.WithOutcome(fault.NotApplied)
}

// code is SQLite's primary result code, 0 for another error.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

func isBusy(err error) bool {
	c := code(err)
	return c == sqlite3.SQLITE_BUSY || c == sqlite3.SQLITE_LOCKED
}

// storeFault is the fault of an error that left the file as it was.
func storeFault(err error) *fault.Fault {
	if f, ok := errors.AsType[*fault.Fault](err); ok {
		return f.WithOutcome(fault.NotApplied)
	}
	down := func(text string) *fault.Fault {
		return fault.Wrap(err, fault.Unavailable, fault.BackendDown, text).WithRetry(time.Second)
	}
	var f *fault.Fault
	switch code(err) {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		f = fault.Wrap(err, fault.Unavailable, fault.Pool, "another process keeps the store busy").WithRetry(50 * time.Millisecond)
	case sqlite3.SQLITE_FULL:
		f = fault.Wrap(err, fault.Exhausted, fault.Backend, "the backend is full")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		f = down("the backend takes no writes")
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL:
		f = down("the backend's file cannot be used")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		f = fault.Wrap(err, fault.DataLoss, fault.Checksum, "the backend's file is damaged")
	case sqlite3.SQLITE_TOOBIG:
		f = fault.Wrap(err, fault.Invalid, fault.TooLarge, "the value is larger than the backend can hold")
	default:
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			f = down("the backend's file cannot be used")
		} else {
			f = fault.From(err)
		}
	}
	return f.WithOutcome(fault.NotApplied)
}

// readFault is the fault of a call that changes no item.
func readFault(ctx context.Context, err error) *fault.Fault {
	if ctx.Err() != nil && (code(err) == sqlite3.SQLITE_INTERRUPT || errors.Is(err, ctx.Err())) {
		return fault.From(ctx.Err()).WithOutcome(fault.NotApplied)
	}
	return storeFault(err)
}

// schemaFault is the fault of preparing the file: what SQLite has against statements of ours is that the tables are not.
func schemaFault(ctx context.Context, err error) *fault.Fault {
	if code(err) == sqlite3.SQLITE_ERROR {
		return fault.Wrap(err, fault.DataLoss, fault.Checksum, "the backend's file has tables that are not Prism's").WithOutcome(fault.NotApplied)
	}
	return readFault(ctx, err)
}
