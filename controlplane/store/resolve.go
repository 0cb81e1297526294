package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/shared/fault"
)

var (
	errLost    = errors.New("store: head moved")
	errChanged = errors.New("not as it was")
)

// guardError says that a snapshot that a rollback goes to was deleted meanwhile.
type guardError struct{ version uint64 }

func (e *guardError) Error() string { return fmt.Sprintf("store: snapshot %d is gone", e.version) }

// confirm finds out whether the head that is known is the newest; errLost means that it was not.
func (s *Store) confirm(ctx context.Context, st *state) error {
	short, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	resp, err := s.etcd.Get(short, s.keys.head())
	if err != nil {
		return notWritten(err)
	}
	if len(resp.Kvs) > 0 && resp.Kvs[0].ModRevision == st.revision {
		return nil
	}
	return s.lost(ctx, resp.Kvs)
}

// lost brings the state up to the head that won.
func (s *Store) lost(ctx context.Context, head []*mvccpb.KeyValue) error {
	if len(head) == 0 {
		return fault.From(damaged(s.keys.head(), errMissing)).WithOutcome(fault.NotApplied)
	}
	ctx, cancel := context.WithTimeout(ctx, longFactor*s.cfg.Timeout)
	defer cancel()
	if err := s.catchUp(ctx, head[0]); err != nil {
		return fault.From(down(err)).WithOutcome(fault.NotApplied)
	}
	return errLost
}

// lostGuard finds the snapshot that was deleted while a rollback to it was under way.
func (s *Store) lostGuard(ctx context.Context, p *plan) error {
	if p.fence != nil {
		return errNotLeading
	}
	for _, g := range p.guards {
		_, revision, err := s.snapshotAt(ctx, g.version, nil)
		switch {
		case fault.Is(err, fault.Snapshot), err == nil && revision != g.revision:
			return &guardError{g.version}
		case err != nil:
			return fault.From(err).WithOutcome(fault.NotApplied)
		}
	}
	return fault.From(damaged(s.keys.head(), errChanged)).WithOutcome(fault.NotApplied)
}

// resolve finds out what became of a commit whose answer was lost, and returns its revision if it was made. It writes
// head anew as it was: either that is refused, because the commit or another was made, or the commit cannot be made
// any more, however late it arrives.
func (s *Store) resolve(ctx context.Context, st, next *state, headData string, cause error) (int64, error) {
	if refused(cause) {
		return 0, notWritten(cause)
	}
	head, err := s.headOf(st)
	if err != nil {
		return 0, fault.From(err)
	}
	short, cancel := context.WithTimeout(ctx, s.cfg.Timeout/3)
	defer cancel()
	look := []clientv3.Op{clientv3.OpGet(s.keys.head()), clientv3.OpGet(s.keys.snapshot(next.tree.Version()))}
	txn := s.etcd.Txn(short)
	if full(cause) {
		txn = txn.Then(look...) // etcd has answered, so it is enough to look, and it would not write
	} else {
		txn = txn.If(clientv3.Compare(clientv3.ModRevision(s.keys.head()), "=", st.revision)).
			Then(clientv3.OpPut(s.keys.head(), head)).Else(look...)
	}
	resp, err := txn.Commit()
	if err != nil {
		return 0, fault.Wrap(errors.Join(cause, err), fault.Unavailable, fault.StoreDown,
			"the store of the control plane does not answer, and it is not known whether the change was made: read before trying again").
			WithRetry(time.Second).WithOutcome(fault.OutcomeUnknown)
	}
	if full(cause) {
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 && kvs[0].ModRevision == st.revision {
			return 0, notWritten(cause)
		}
	} else if resp.Succeeded {
		s.publish(st.at(resp.Header.Revision))
		return 0, errLost
	}
	if next.record == st.record { // a step without a snapshot: it is told by the head that it wrote
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 && string(kvs[0].Value) == headData {
			return kvs[0].ModRevision, nil
		}
	} else if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		stored, err := decodeRecord(string(kvs[0].Key), kvs[0].Value)
		if err != nil {
			return 0, err
		}
		if stored.CommitId == next.record.CommitId {
			return kvs[0].ModRevision, nil
		}
	}
	return 0, s.lost(ctx, resp.Responses[0].GetResponseRange().Kvs)
}

// send makes a request again while etcd says that it has too many, which it says before it does anything. Other errors
// are the caller's.
func send(ctx context.Context, txn clientv3.Txn) (*clientv3.TxnResponse, error) {
	for attempt := 0; ; attempt++ {
		resp, err := txn.Commit()
		if !errors.Is(err, rpctypes.ErrTooManyRequests) || !pause(ctx, attempt) {
			return resp, err
		}
	}
}

// full reports whether etcd answered that its space is used up. It may have done the request all the same: the one that
// fills it is done, and answered so.
func full(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }

// refused reports whether etcd answered that it did not do a request.
func refused(err error) bool {
	if full(err) {
		return false
	}
	code := status.Code(err)
	if own, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = own.Code()
	}
	switch code {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.OutOfRange:
		return true
	}
	return false
}

// notWritten is a fault for a write that did not change the configuration, whatever etcd did with it.
func notWritten(err error) error {
	text := "the store of the control plane does not answer; nothing was changed: try again in a moment"
	switch {
	case full(err):
		return fault.Wrap(err, fault.Exhausted, fault.StoreDown,
			"the space of the control plane's etcd is used up (NOSPACE); nothing was changed: an operator makes room as docs/operating.md says").
			WithOutcome(fault.NotApplied)
	case errors.Is(err, rpctypes.ErrTooManyRequests):
		text = "the store of the control plane has more requests than it can do; nothing was changed: try again in a moment"
	case refused(err):
		text = "the store of the control plane refuses to write; nothing was changed: see the log of this replica"
	}
	return fault.Wrap(err, fault.Unavailable, fault.StoreDown, text).WithRetry(time.Second).WithOutcome(fault.NotApplied)
}
