package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Increment is one call of a function.
func (i *Instance) Increment(ctx context.Context, space driver.Space, inc driver.Increment) (driver.Incremented, error) {
	if err := i.prepared(ctx); err != nil {
		return driver.Incremented{}, err
	}
	now, lock := i.now(), lockOf(space, inc.ID)
	a := &answer{}
	var sum *int64
	r := &request{text: i.texts.increment, lock: lock, args: append([]any{
		lock, []byte(space), blob(inc.ID), blob(inc.Key), inc.Delta, inc.Initial, now.UnixMilli(), driver.ExpireMillis(inc.ExpireAt),
		inc.KeepExpiry, i.versions.Next(), now.UnixMicro(),
	}, tokenArgs(inc.Token)...)}
	r.read = func(rows pgx.Rows) error {
		var at *int64
		var existed *bool
		for rows.Next() {
			if err := rows.Scan(&a.status, &a.current, &at, &existed, &sum); err != nil {
				return err
			}
		}
		if at != nil && existed != nil {
			a.at, a.existed = *at, *existed
		}
		return nil
	}
	if f := i.writes.do(ctx, r); f != nil {
		return driver.Incremented{}, i.forget(f)
	}
	switch {
	case a.status == notCounter:
		return driver.Incremented{}, driver.NotACounter()
	case a.status == overflow:
		return driver.Incremented{}, driver.Overflow()
	case a.status == reused:
		return driver.Incremented{}, driver.Reused()
	case sum == nil:
		return driver.Incremented{}, oddAnswer()
	}
	return driver.Incremented{Value: *sum, Written: driver.Written{
		Version: a.current, ExpireAt: driver.ExpireTime(a.at), Existed: a.existed, Duplicate: a.status == duplicate,
	}}, nil
}

// Transact is one call of a function, in a transaction of the database.
func (i *Instance) Transact(ctx context.Context, space driver.Space, t driver.Transaction) (driver.Transacted, error) {
	if err := i.prepared(ctx); err != nil {
		return driver.Transacted{}, err
	}
	r := i.transaction(space, t)
	var status, place int32
	var current []byte
	var versions [][]byte
	var expires []int64
	var existed []bool
	r.read = func(rows pgx.Rows) error {
		for rows.Next() {
			if err := rows.Scan(&status, &place, &current, &versions, &expires, &existed); err != nil {
				return err
			}
		}
		return nil
	}
	if f := i.writes.do(ctx, r); f != nil {
		return driver.Transacted{}, i.forget(f)
	}
	switch {
	case status == refused:
		return driver.Transacted{}, driver.CheckFailed(current, int(place))
	case status == reused:
		return driver.Transacted{}, driver.Reused()
	case len(versions) != len(t.Writes) || len(expires) != len(t.Writes) || len(existed) != len(t.Writes):
		return driver.Transacted{}, oddAnswer()
	}
	result := driver.Transacted{Results: make([]driver.Written, len(t.Writes)), Duplicate: status == duplicate}
	for n := range result.Results {
		result.Results[n] = driver.Written{
			Version: versions[n], ExpireAt: driver.ExpireTime(expires[n]), Existed: existed[n], Duplicate: result.Duplicate,
		}
	}
	return result, nil
}

// transaction makes the call: what the checks and the writes have is in arrays side by side.
func (i *Instance) transaction(space driver.Space, t driver.Transaction) *request {
	now, lock := i.now(), lockOf(space, t.ID)
	checkKeys, checkConditions, checkVersions := [][]byte{}, []int32{}, [][]byte{}
	for _, c := range t.Checks {
		checkKeys, checkConditions = append(checkKeys, blob(c.Key)), append(checkConditions, int32(c.Condition))
		checkVersions = append(checkVersions, blob(c.Version))
	}
	ops, conditions, expires, keeps := []int32{}, []int32{}, []int64{}, []bool{}
	keys, expected, versions, metas, values := [][]byte{}, [][]byte{}, [][]byte{}, [][]byte{}, [][]byte{}
	for _, w := range t.Writes {
		ops, conditions = append(ops, int32(w.Op)), append(conditions, int32(w.Condition))
		expires, keeps = append(expires, driver.ExpireMillis(w.ExpireAt)), append(keeps, w.KeepExpiry)
		keys, expected, versions = append(keys, blob(w.Key)), append(expected, blob(w.Version)), append(versions, i.versions.Next())
		metas, values = append(metas, encodeMeta(w.ContentType, w.Metadata)), append(values, blob(w.Value))
	}
	return &request{text: i.texts.transact, lock: lock, args: append([]any{
		lock, []byte(space), blob(t.ID), now.UnixMilli(), now.UnixMicro(), checkKeys, checkConditions, checkVersions,
		ops, keys, conditions, expected, expires, keeps, versions, metas, values,
	}, tokenArgs(t.Token)...)}
}
