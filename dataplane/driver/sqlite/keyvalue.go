package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// Get reads one row.
func (i *Instance) Get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	s, err := i.prepared(ctx)
	if err != nil {
		return nil, err
	}
	return i.get(ctx, s, space, name, headOnly)
}

func (i *Instance) get(ctx context.Context, s *statements, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	stmt := s.get
	if headOnly {
		stmt = s.head
	}
	it, expire, err := scanItem(stmt.QueryRowContext(ctx, []byte(space), blob(name.ID), blob(name.Key)), headOnly)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && driver.Expired(expire, i.now())) {
		return nil, nil
	}
	if err != nil {
		return nil, i.failed(ctx, err)
	}
	it.ID = slices.Clone(name.ID)
	if it.large != nil && !headOnly {
		return nil, driver.TooLarge(it.Size)
	}
	return &it.Item, nil
}

// failed is the fault of a read.
func (i *Instance) failed(ctx context.Context, err error) error {
	select {
	case <-i.stop:
		return closedFault()
	default:
		return readFault(ctx, err).WithOutcome("")
	}
}

// blob is b as SQLite is to store it: an empty one is not NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

type row interface{ Scan(to ...any) error }

// sizeColumn is the size of the value.
const sizeColumn = "iif(large IS NULL, length(value), size)"

// stored is an item as it is stored.
type stored struct {
	driver.Item
	expire int64  // milliseconds since 1970; 0: never
	large  []byte // the name of a large value; nil: the value is in Item
}

// scanItem reads key, version, expire, modified, type, metadata, large, size, value.
func scanItem(r row, headOnly bool) (*stored, int64, error) {
	it := &stored{}
	var modified int64
	var metadata []byte
	if err := r.Scan(&it.Key, &it.Version, &it.expire, &modified, &it.ContentType, &metadata, &it.large, &it.Size, &it.Value); err != nil {
		return nil, 0, err
	}
	it.ExpireAt, it.ModifiedAt = driver.ExpireTime(it.expire), time.UnixMicro(modified).UTC()
	switch {
	case headOnly || it.large != nil:
		it.Value = nil
	default:
		it.Size = 0
	}
	var ok bool
	if it.Metadata, ok = decodeMetadata(metadata); !ok {
		return nil, 0, fault.New(fault.DataLoss, fault.Checksum, "the stored item cannot be read")
	}
	return it, it.expire, nil
}

// encodeMetadata writes each string behind its length.
func encodeMetadata(m map[string]string) []byte {
	b := []byte{}
	for k, v := range m {
		for _, s := range []string{k, v} {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	return b
}

func decodeMetadata(b []byte) (m map[string]string, ok bool) {
	var words []string
	for len(b) > 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return nil, false
		}
		words = append(words, string(b[size:size+int(n)]))
		b = b[size+int(n):]
	}
	if len(words)%2 != 0 {
		return nil, false
	}
	for n := 0; n < len(words); n += 2 {
		if m == nil {
			m = make(map[string]string, len(words)/2)
		}
		m[words[n]] = words[n+1]
	}
	return m, true
}

// BatchGet reads one row after the other.
func (i *Instance) BatchGet(ctx context.Context, space driver.Space, names []driver.Name, headOnly bool) []driver.GetResult {
	results := make([]driver.GetResult, len(names))
	for n, name := range names {
		results[n].Item, results[n].Err = i.Get(ctx, space, name, headOnly)
	}
	return results
}

// Scan reads rows in the order of the primary key, in one read transaction.
func (i *Instance) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	s, err := i.prepared(ctx)
	if err != nil {
		return nil, false, err
	}
	stmt := map[[2]bool]*sql.Stmt{
		{false, false}: s.scan, {true, false}: s.scanBack, {false, true}: s.scanHeads, {true, true}: s.scanHeadsBack,
	}[[2]bool{r.Reverse, r.KeysOnly}]
	var end any
	if r.End != nil {
		end = r.End
	}
	rows, err := stmt.QueryContext(ctx, []byte(space), blob(r.ID), blob(r.Start), end, end, i.now().UnixMilli())
	if err != nil {
		return nil, false, i.failed(ctx, err)
	}
	defer rows.Close()
	var items []driver.Item
	size := 0
	for rows.Next() {
		if len(items) == r.Limit || (len(items) > 0 && size >= r.MaxBytes) {
			return items, true, nil
		}
		it, _, err := scanItem(rows, r.KeysOnly)
		if err != nil {
			return nil, false, i.failed(ctx, err)
		}
		it.ID = slices.Clone(r.ID)
		items = append(items, it.Item)
		size += len(it.ID) + len(it.Key) + len(it.Value)
	}
	if err := rows.Err(); err != nil {
		return nil, false, i.failed(ctx, err)
	}
	return items, false, nil
}

// ListIDs goes from id to id in byte order; the cursor is the last one given.
func (i *Instance) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) ([][]byte, []byte, error) {
	s, err := i.prepared(ctx)
	if err != nil {
		return nil, nil, err
	}
	now := i.now().UnixMilli()
	var ids [][]byte
	for after := blob(cursor); len(ids) < limit; {
		var id []byte
		err := s.ids.QueryRowContext(ctx, []byte(space), after, now).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return ids, nil, nil
		}
		if err != nil {
			return nil, nil, i.failed(ctx, err)
		}
		ids, after = append(ids, id), id
	}
	return ids, slices.Clone(ids[len(ids)-1]), nil
}
