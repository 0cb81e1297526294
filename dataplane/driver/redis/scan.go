package redis

import (
	"context"
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// Scan is one call of a script, which sees one moment; more of them where many items have expired.
func (i *Instance) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	from, to := "["+string(r.Start), "+"
	if r.End != nil {
		to = "(" + string(r.End)
	}
	prefix := itemKey(space, driver.Name{ID: r.ID})
	for {
		now := i.now()
		call := []redis.Cmder{scanScript.call(ctx, []string{indexKey(space, r.ID)}, prefix, from, to, flag(r.Reverse), flag(r.KeysOnly),
			r.Limit, r.MaxBytes, now.UnixMilli(), len(r.ID))}
		if f := i.queue.run(ctx, scanScript, call)[0]; f != nil {
			return nil, false, f.WithOutcome("")
		}
		answer, err := call[0].(*redis.Cmd).Slice()
		if err != nil || len(answer) < 2 || len(answer)%2 != 0 {
			return nil, false, oddAnswer()
		}
		var items []driver.Item
		for n := 2; n < len(answer); n += 2 {
			key, _ := answer[n].(string)
			record, _ := answer[n+1].(string)
			it, err := decoded([]byte(record), driver.Name{ID: slices.Clone(r.ID), Key: []byte(key)}, now, r.KeysOnly)
			if err != nil {
				return nil, false, err
			}
			if it != nil {
				items = append(items, *it)
			}
		}
		more, _ := answer[0].(int64)
		if more != 2 || len(items) > 0 {
			return items, more != 0, nil
		}
		last, _ := answer[1].(string)
		if r.Reverse {
			to = "(" + last
		} else {
			from = "(" + last
		}
	}
}

// ListIDs walks the keys of the database with SCAN and gives the ids whose index it meets, if they have items. A page may
// hold fewer ids than there are. The cursor is SCAN's, then ids that were met but did not fit.
func (i *Instance) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) ([][]byte, []byte, error) {
	at, met, ok := parseCursor(cursor)
	if !ok {
		return nil, nil, fault.New(fault.Invalid, fault.PageToken, "the cursor is not one that was given out")
	}
	pattern := indexPattern(space)
	first := cursor == nil
	var ids [][]byte
	// A page ends after a bounded walk, also when it met little.
	for rounds := 0; rounds < 100 && (first || at != 0) && len(met) < limit; rounds++ {
		first = false
		cmd := redis.NewScanCmd(ctx, nil, "scan", strconv.FormatUint(at, 10), "match", pattern, "count", limit-len(met))
		if err := i.read(ctx, cmd); err != nil {
			return nil, nil, err
		}
		var keys []string
		keys, at = cmd.Val()
		for _, key := range keys {
			if id, ok := idOf(key, space); ok {
				met = append(met, id)
			}
		}
	}
	page := met[:min(limit, len(met))]
	for len(formatCursor(at, met[len(page):])) > driver.MaxCursor { // one step of SCAN may meet many
		page = met[:len(page)+1]
	}
	alive, err := i.alive(ctx, space, page)
	if err != nil {
		return nil, nil, err
	}
	for n, id := range page {
		if alive[n] {
			ids = append(ids, id)
		}
	}
	if rest := met[len(page):]; at != 0 || first || len(rest) > 0 {
		return ids, formatCursor(at, rest), nil
	}
	return ids, nil, nil
}

// alive says which ids have a visible item.
func (i *Instance) alive(ctx context.Context, space driver.Space, ids [][]byte) ([]bool, error) {
	alive := make([]bool, len(ids))
	from := make([]string, len(ids))
	open := make([]int, len(ids))
	for n := range ids {
		open[n], from[n] = n, "-"
	}
	for len(open) > 0 {
		cmds := make([]redis.Cmder, len(open))
		for at, n := range open {
			cmds[at] = aliveScript.call(ctx, []string{indexKey(space, ids[n])}, itemKey(space, driver.Name{ID: ids[n]}), i.now().UnixMilli(), from[n])
		}
		var again []int
		for at, f := range i.queue.run(ctx, aliveScript, cmds) {
			if f != nil {
				return nil, f.WithOutcome("")
			}
			answer, err := cmds[at].(*redis.Cmd).Slice()
			if err != nil || len(answer) != 2 {
				return nil, oddAnswer()
			}
			switch said, _ := answer[0].(int64); said {
			case 1:
				alive[open[at]] = true
			case 2:
				last, _ := answer[1].(string)
				from[open[at]] = "(" + last
				again = append(again, open[at])
			}
		}
		open = again
	}
	return alive, nil
}

func formatCursor(at uint64, met [][]byte) []byte {
	b := binary.AppendUvarint(nil, at)
	for _, id := range met {
		b = appendString(b, string(id))
	}
	return b
}

func parseCursor(b []byte) (at uint64, met [][]byte, ok bool) {
	if b == nil {
		return 0, nil, true
	}
	at, size := binary.Uvarint(b)
	if size <= 0 {
		return 0, nil, false
	}
	for b = b[size:]; len(b) > 0; {
		var id string
		if id, b, ok = cutString(b); !ok {
			return 0, nil, false
		}
		met = append(met, []byte(id))
	}
	return at, met, true
}
