package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/dataplane/driver"
)

// scanKind is a form of the scan statement: a bound that is not there must not stand in the plan.
type scanKind struct{ end, reverse, keysOnly bool }

func scanKinds() (kinds []scanKind) {
	for n := range 8 {
		kinds = append(kinds, scanKind{n&1 != 0, n&2 != 0, n&4 != 0})
	}
	return kinds
}

// text is the statement: $1 space, $2 id, $3 start, $4 now, $5 limit, $6 bytes, $7 end. It leaves out the values that lie
// behind so many bytes, so that the server does not send what nobody takes.
func (k scanKind) text() string {
	end, order, value := "", "", "CASE WHEN coalesce(before, 0) < $6 THEN value END"
	if k.end {
		end = " AND key < $7"
	}
	if k.reverse {
		order = " DESC"
	}
	if k.keysOnly {
		value = "CASE WHEN coalesce(before, 0) < $6 THEN NULL::bytea END"
	}
	return fmt.Sprintf(`SELECT key, version, expire, modified, size, meta, large, %s FROM (
		SELECT *, sum(octet_length(value) + octet_length(key)) OVER (ORDER BY key%s ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
		FROM (SELECT * FROM {s}.item WHERE space = $1 AND id = $2 AND key >= $3%s AND (expire = 0 OR expire > $4) ORDER BY key%s LIMIT $5) AS run
		) AS page ORDER BY key%s`, value, order, end, order, order)
}

// Scan reads rows in the order of the primary key.
func (i *Instance) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	if err := i.prepared(ctx); err != nil {
		return nil, false, failed(err)
	}
	args := []any{[]byte(space), blob(r.ID), blob(r.Start), i.now().UnixMilli(), int64(r.Limit) + 1, int64(r.MaxBytes)}
	if r.End != nil {
		args = append(args, r.End)
	}
	var items []driver.Item
	var more bool
	q := &request{text: i.texts.scan[scanKind{r.End != nil, r.Reverse, r.KeysOnly}], args: args}
	q.read = func(rows pgx.Rows) error {
		items, more = nil, false
		size := 0
		for rows.Next() {
			if len(items) == r.Limit || (len(items) > 0 && size >= r.MaxBytes) {
				more = true
				return nil
			}
			it := stored{}
			var modified, large int64
			if err := rows.Scan(&it.Key, &it.Version, &it.expire, &modified, &large, &it.meta, &it.large, &it.Value); err != nil {
				return err
			}
			if err := it.decode(); err != nil {
				return err
			}
			it.ID, it.ModifiedAt, it.Size = slices.Clone(r.ID), time.UnixMicro(modified).UTC(), uint64(large)
			if it.large != nil || r.KeysOnly {
				it.Value = nil
			}
			items = append(items, it.Item)
			size += len(it.ID) + len(it.Key) + len(it.Value)
		}
		return nil
	}
	if f := i.long.do(ctx, q); f != nil {
		return nil, false, i.failed(f)
	}
	return items, more, nil
}

// ListIDs steps from id to id in the primary key. The cursor is the last one.
func (i *Instance) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) (ids [][]byte, next []byte, err error) {
	if err := i.prepared(ctx); err != nil {
		return nil, nil, failed(err)
	}
	q := &request{text: i.texts.ids, args: []any{[]byte(space), blob(cursor), i.now().UnixMilli(), int64(limit)}}
	q.read = func(rows pgx.Rows) error {
		ids = nil
		for rows.Next() {
			var id []byte
			if err := rows.Scan(&id); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	}
	if f := i.long.do(ctx, q); f != nil {
		return nil, nil, i.failed(f)
	}
	if len(ids) == limit {
		next = slices.Clone(ids[limit-1])
	}
	return ids, next, nil
}
