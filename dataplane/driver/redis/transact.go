package redis

import (
	"context"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// Increment is one call of a script.
func (i *Instance) Increment(ctx context.Context, space driver.Space, inc driver.Increment) (driver.Incremented, error) {
	now := i.now()
	keys := []string{itemKey(space, inc.Name), indexKey(space, inc.ID), scratchKey(space, inc.ID)}
	args := []any{
		inc.Delta, inc.Initial, now.UnixMilli(), flag(inc.KeepExpiry), string(inc.Key),
		encode(driver.ExpireMillis(inc.ExpireAt), now, i.versions.Next(), "", nil, nil),
	}
	if inc.Token != nil {
		keys, args = append(keys, tokenKey(space, inc.ID, inc.Token)), append(args, string(inc.Token.Request[:]), life(inc.Token, now))
	}
	calls := []redis.Cmder{incrementScript.call(ctx, keys, args...)}
	if f := i.queue.run(ctx, incrementScript, calls)[0]; f != nil {
		return driver.Incremented{}, f
	}
	status, _, done, sum, err := parse(calls[0])
	switch {
	case err != nil:
		return driver.Incremented{}, err
	case status == refused && sum == "N":
		return driver.Incremented{}, driver.NotACounter()
	case status == refused && sum == "O":
		return driver.Incremented{}, driver.Overflow()
	}
	n, ok := driver.ParseNumber([]byte(sum))
	if !ok {
		return driver.Incremented{}, oddAnswer()
	}
	return driver.Incremented{Value: n, Written: done}, nil
}

// Transact is one call of a script, which nothing interrupts.
func (i *Instance) Transact(ctx context.Context, space driver.Space, t driver.Transaction) (driver.Transacted, error) {
	now := i.now()
	keys := []string{indexKey(space, t.ID)}
	args := []any{now.UnixMilli(), len(t.Checks), len(t.Writes), "", 0}
	for _, c := range t.Checks {
		keys = append(keys, itemKey(space, driver.Name{ID: t.ID, Key: c.Key}))
		args = append(args, int(c.Condition), string(c.Version))
	}
	for _, w := range t.Writes {
		op, record := i.record(w, now)
		keys = append(keys, itemKey(space, w.Name))
		args = append(args, op, int(w.Condition), string(w.Version), flag(w.KeepExpiry), string(w.Key), record)
	}
	if t.Token != nil {
		keys = append(keys, tokenKey(space, t.ID, t.Token))
		args[3], args[4] = string(t.Token.Request[:]), life(t.Token, now)
	}
	calls := []redis.Cmder{transactScript.call(ctx, keys, args...)}
	if f := i.queue.run(ctx, transactScript, calls)[0]; f != nil {
		return driver.Transacted{}, f
	}
	return transacted(calls[0], len(t.Writes))
}

// transacted is what a call of the transaction script says.
func transacted(call redis.Cmder, writes int) (driver.Transacted, error) {
	answer, err := call.(*redis.Cmd).Slice()
	if err != nil || len(answer) == 0 {
		return driver.Transacted{}, oddAnswer()
	}
	number, _ := answer[0].(int64)
	switch status := strconv.FormatInt(number, 10); {
	case status == reused:
		return driver.Transacted{}, driver.Reused()
	case status == refused && len(answer) == 3:
		place, _ := answer[1].(int64)
		current, _ := answer[2].(string)
		return driver.Transacted{}, driver.CheckFailed(bytesOf(current), int(place))
	case len(answer) != 1+3*writes:
		return driver.Transacted{}, oddAnswer()
	default:
		done := driver.Transacted{Results: make([]driver.Written, writes), Duplicate: status == duplicate}
		for n := range done.Results {
			existed, _ := answer[1+3*n].(int64)
			expire, _ := answer[2+3*n].(string)
			version, _ := answer[3+3*n].(string)
			ms, err := strconv.ParseInt(expire, 10, 64)
			if err != nil {
				return driver.Transacted{}, oddAnswer()
			}
			done.Results[n] = driver.Written{Version: bytesOf(version), ExpireAt: driver.ExpireTime(ms), Existed: existed == 1, Duplicate: done.Duplicate}
		}
		return done, nil
	}
}
