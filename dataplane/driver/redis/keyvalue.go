package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// Get is one GET, or one GETRANGE when only the head is wanted.
func (i *Instance) Get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	cmd := getCmd(ctx, space, name, headOnly)
	if err := i.read(ctx, cmd); err != nil {
		return nil, err
	}
	return i.item(ctx, space, name, cmd, headOnly)
}

// headRange is how much of a record a read of the head asks for: more than metadata is usually long.
const headRange = 4096

func getCmd(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) *redis.StringCmd {
	if headOnly {
		return redis.NewStringCmd(ctx, "getrange", itemKey(space, name), 0, headRange-1)
	}
	return redis.NewStringCmd(ctx, "get", itemKey(space, name))
}

// item is what a command of getCmd brought.
func (i *Instance) item(ctx context.Context, space driver.Space, name driver.Name, cmd *redis.StringCmd, headOnly bool) (*driver.Item, error) {
	record, err := cmd.Bytes()
	if err == redis.Nil || (err == nil && len(record) == 0) {
		return nil, nil
	}
	if len(record) >= metaAt && headOnly {
		head := metaAt + int(binary.BigEndian.Uint32(record[metaLenAt:]))
		if head > len(record) {
			whole := getCmd(ctx, space, name, false)
			if err := i.read(ctx, whole); err != nil {
				return nil, err
			}
			if record, err = whole.Bytes(); err == redis.Nil {
				return nil, nil
			}
		}
	}
	return decoded(record, name, i.now(), headOnly)
}

func decoded(record []byte, name driver.Name, now time.Time, headOnly bool) (*driver.Item, error) {
	it, err := decode(record, name, now, headOnly)
	if err != nil {
		return nil, fault.Wrap(err, fault.DataLoss, fault.Checksum, "the stored item cannot be read")
	}
	return it, nil
}

// BatchGet sends all reads at once.
func (i *Instance) BatchGet(ctx context.Context, space driver.Space, names []driver.Name, headOnly bool) []driver.GetResult {
	results := make([]driver.GetResult, len(names))
	cmds := make([]redis.Cmder, len(names))
	for n, name := range names {
		cmds[n] = getCmd(ctx, space, name, headOnly)
	}
	for n, f := range i.queue.doAll(ctx, cmds) {
		if f != nil {
			results[n].Err = f.WithOutcome("")
			continue
		}
		results[n].Item, results[n].Err = i.item(ctx, space, names[n], cmds[n].(*redis.StringCmd), headOnly)
	}
	return results
}

// Write is one call of a script.
func (i *Instance) Write(ctx context.Context, space driver.Space, w driver.Write) (driver.Written, error) {
	results := i.BatchWrite(ctx, space, []driver.Write{w})
	return results[0].Written, results[0].Err
}

// BatchWrite sends all writes at once; each is a script call of its own.
func (i *Instance) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	now := i.now()
	results := make([]driver.WriteResult, len(writes))
	calls := make([]redis.Cmder, len(writes))
	for n, w := range writes {
		calls[n] = i.writeCall(ctx, space, w, now)
	}
	faults := i.queue.run(ctx, writeScript, calls)
	for n, w := range writes {
		if faults[n] != nil {
			results[n].Err = faults[n]
			continue
		}
		results[n].Written, results[n].Err = written(w, calls[n])
	}
	return results
}

// writeCall is the script call that does a write.
func (i *Instance) writeCall(ctx context.Context, space driver.Space, w driver.Write, now time.Time) redis.Cmder {
	keys := []string{itemKey(space, w.Name), indexKey(space, w.ID)}
	op, record := i.record(w, now)
	if w.Token == nil {
		return writeScript.call(ctx, keys, op, int(w.Condition), string(w.Version), now.UnixMilli(), flag(w.KeepExpiry), flag(w.Previous), string(w.Key), record)
	}
	return writeScript.call(ctx, append(keys, tokenKey(space, w.ID, w.Token)), op, int(w.Condition), string(w.Version), now.UnixMilli(),
		flag(w.KeepExpiry), flag(w.Previous), string(w.Key), record, string(w.Token.Request[:]), life(w.Token, now))
}

// record is the script's name for a write's operation and the record that it writes.
func (i *Instance) record(w driver.Write, now time.Time) (op string, record []byte) {
	switch expire := driver.ExpireMillis(w.ExpireAt); w.Op {
	case driver.Touch:
		return "t", encode(expire, now, i.versions.Next(), "", nil, nil)
	case driver.Delete:
		return "d", nil
	default:
		return "p", encode(expire, now, i.versions.Next(), w.ContentType, w.Metadata, w.Value)
	}
}

// life is how long a token is remembered, in milliseconds by any clock.
func life(t *driver.Token, now time.Time) int64 { return max(1, t.Until.Sub(now).Milliseconds()) }

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// written is what a call of the write script says.
func written(w driver.Write, call redis.Cmder) (driver.Written, error) {
	status, current, result, previous, err := parse(call)
	if err != nil {
		return driver.Written{}, err
	}
	if status == refused {
		if err := w.Refusal(current); err != nil {
			return driver.Written{}, err
		}
		return driver.Written{}, oddAnswer()
	}
	if previous != "" {
		// It was visible when the script ran; that it may have expired since does not matter.
		if result.Previous, err = decode([]byte(previous), w.Name, time.Time{}, false); err != nil {
			return result, fault.Wrap(err, fault.DataLoss, fault.Checksum, "the stored item cannot be read").WithOutcome(fault.Applied)
		}
	}
	return result, nil
}

// parse reads an answer of the scripts that write one item: what became of it, the version that was there (nil for none),
// the result, and what else it tells. The refusal of a token is the error.
func parse(call redis.Cmder) (status string, current []byte, done driver.Written, text string, err error) {
	answer, err := call.(*redis.Cmd).Slice()
	if err != nil || len(answer) == 0 {
		return "", nil, done, "", oddAnswer()
	}
	number, _ := answer[0].(int64)
	if status = strconv.FormatInt(number, 10); status == reused {
		return "", nil, done, "", driver.Reused()
	}
	if len(answer) != 5 {
		return "", nil, done, "", oddAnswer()
	}
	there, _ := answer[1].(string)
	expire, _ := answer[2].(string)
	text, _ = answer[3].(string)
	version, _ := answer[4].(string)
	ms, err := strconv.ParseInt(expire, 10, 64)
	if err != nil {
		return "", nil, done, "", oddAnswer()
	}
	return status, bytesOf(there), driver.Written{
		Version: bytesOf(version), ExpireAt: driver.ExpireTime(ms), Existed: there != "", Duplicate: status == duplicate,
	}, text, nil
}

// bytesOf is a version; nil for none.
func bytesOf(version string) []byte {
	if version == "" {
		return nil
	}
	return []byte(version)
}

func oddAnswer() *fault.Fault {
	return fault.Wrap(errAnswer, fault.Internal, fault.Bug, "internal error").WithOutcome(fault.OutcomeUnknown)
}

var errAnswer = errors.New("a script's answer has not the form that it ought to have")
