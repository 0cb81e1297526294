package postgres

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/prism-gateway/prism/shared/fault"
)

// errReadOnly is the refusal of a server that takes no writes.
var errReadOnly = errors.New("the server is read-only")

func closedFault() *fault.Fault {
	return fault.New(fault.Unavailable, fault.Draining, "the backend is closed").WithOutcome(fault.NotApplied)
}

// unsent is the fault of a call whose context ended before its statement was sent.
func unsent(err error) *fault.Fault {
	f := fault.From(err)
	if f.Code == fault.DeadlineExceeded {
		f = fault.Wrap(err, fault.DeadlineExceeded, fault.Pool, "the time ran out while waiting for a connection")
	}
	return f.WithOutcome(fault.NotApplied)
}

func down(err error, text string) *fault.Fault {
	return fault.Wrap(err, fault.Unavailable, fault.BackendDown, text).WithRetry(100 * time.Millisecond)
}

func readOnly(err error) *fault.Fault {
	return fault.Wrap(err, fault.FailedPrecondition, fault.ReadOnly, "the backend takes no writes")
}

// nameless is an error of connecting that does not name the user: it is a caller's, and logs do not name those.
type nameless struct {
	*pgconn.ConnectError
}

func withoutUser(err error) error {
	if e, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return nameless{e}
	}
	return err
}

func (n nameless) Unwrap() error { return n.ConnectError }

func (n nameless) Error() string {
	user := n.Config.User
	return strings.NewReplacer("user="+user+" ", "", `"`+user+`" `, "").Replace(n.ConnectError.Error())
}

// connectFault is the fault of having no connection: nothing was sent.
func connectFault(err error) *fault.Fault {
	err = withoutUser(err)
	var f *fault.Fault
	_, isServer := errors.AsType[*pgconn.PgError](err)
	_, isConnect := errors.AsType[*pgconn.ConnectError](err)
	switch {
	case errors.Is(err, errReadOnly):
		f = readOnly(err)
	case isServer:
		f = storeFault(err)
	case isConnect:
		f = down(err, "the backend takes no connection")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unsent(err)
	default:
		f = down(err, "the backend takes no connection")
	}
	return f.WithOutcome(fault.NotApplied)
}

// denied is the fault of making the schema: a role that may not is told the grant that it lacks.
func denied(err error, grant string) error {
	if state(err) == "42501" {
		return down(err, "the backend denies the proxy's role to make the tables of Prism; grant it "+grant+", or make them with another role")
	}
	return err
}

// told reports whether the server said that it undid the transaction: an error that leaves the connection open.
func told(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.SeverityUnlocalized != "FATAL" && e.SeverityUnlocalized != "PANIC"
}

// state is the SQLSTATE that the server gave; empty for another error.
func state(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// again reports whether the transaction lost to others and may be tried once more.
func again(err error) bool { return told(err) && (state(err) == "40001" || state(err) == "40P01") }

// storeFault is the fault of a statement that was sent. Its outcome is what is known: not applied when the server said so.
func storeFault(err error) *fault.Fault {
	if f, ok := errors.AsType[*fault.Fault](err); ok {
		return f
	}
	err = withoutUser(err)
	outcome := fault.OutcomeUnknown
	if told(err) || pgconn.SafeToRetry(err) {
		outcome = fault.NotApplied
	}
	return classify(err).WithOutcome(outcome)
}

func classify(err error) *fault.Fault {
	code := state(err)
	if code == "" {
		if pgconn.Timeout(err) || errors.Is(err, context.DeadlineExceeded) {
			return fault.Wrap(err, fault.DeadlineExceeded, fault.Backend, "the backend did not answer in time")
		}
		return down(err, "the connection to the backend broke")
	}
	switch code {
	case "40001", "40P01":
		return fault.Wrap(err, fault.Conflict, fault.TxConflict, "the write lost to others, again and again")
	case "57014", "55P03", "25P03", "57P05":
		return fault.Wrap(err, fault.DeadlineExceeded, fault.Backend, "the backend did not answer in time")
	case "25006":
		return readOnly(err)
	case "3D000":
		return down(err, "the backend has no such database")
	case "42501":
		return down(err, "the backend denies the proxy's role the operation; grant it USAGE on the schema and SELECT, INSERT, UPDATE and DELETE on its tables")
	case "28000":
		if strings.Contains(err.Error(), "pg_hba.conf") { // in every language
			return down(err, "the backend's pg_hba.conf does not let the proxy in")
		}
	case "25000":
		return down(err, "the backend's transactions are not read committed; set default_transaction_isolation")
	case "3F000", "42P01", "42883", "42703":
		return down(err, "the backend lacks the tables of Prism")
	}
	switch code[:2] {
	case "28": // a role that is gone is told like a wrong password, and one that may not log in like a wrong address
		return fault.Wrap(err, fault.Unavailable, fault.CredentialsUnavailable, "the backend refuses the proxy's credential").WithRetry(100 * time.Millisecond)
	case "08", "57":
		return down(err, "the backend ends its connections")
	case "53":
		if code == "53100" {
			return fault.Wrap(err, fault.Exhausted, fault.Backend, "the backend is full")
		}
		return down(err, "the backend has no room for another connection")
	case "58":
		return down(err, "the backend cannot use its disk")
	case "XX":
		return fault.Wrap(err, fault.DataLoss, fault.Checksum, "the backend's data is damaged")
	}
	return fault.Wrap(err, fault.Internal, fault.Bug, "internal error")
}
