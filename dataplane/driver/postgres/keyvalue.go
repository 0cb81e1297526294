package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/jackc/pgx/v5"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// texts are the statements, with the schema's name in them.
type texts struct {
	get, head, write, writeOnce, increment, transact, ids string
	scan                                                  map[scanKind]string
	sweepItems, sweepTokens, giveUpOld, partsOf, dropPart string
	dropLarge, begin, part, giveUp, readPart              string
}

func newTexts(schema string) *texts {
	in := func(text string) string { return strings.ReplaceAll(text, "{s}", pgx.Identifier{schema}.Sanitize()) }
	const from = " FROM {s}.item WHERE space = $1 AND id = $2 AND key = $3"
	const results = "SELECT status, current, at, existed, old_version, old_expire, old_modified, old_size, old_meta, old_large, old_value FROM {s}."
	const args = "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17"
	t := &texts{
		get:       in("SELECT version, expire, modified, size, meta, large, value" + from),
		head:      in("SELECT version, expire, modified, size, meta, large, NULL::bytea" + from),
		write:     in(results + "apply(" + args + ")"),
		writeOnce: in(results + "write_once(" + args + ", $18, $19, $20)"),
		increment: in("SELECT status, current, at, existed, sum FROM {s}.increment($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"),
		transact: in("SELECT status, place, current, versions, expires, existed FROM {s}.transact($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, " +
			"$12, $13, $14, $15, $16, $17, $18, $19, $20)"),
		ids: in(`WITH RECURSIVE met(id) AS (
			(SELECT id FROM {s}.item WHERE space = $1 AND id > $2 AND (expire = 0 OR expire > $3) ORDER BY id LIMIT 1)
			UNION ALL
			SELECT (SELECT i.id FROM {s}.item i WHERE i.space = $1 AND i.id > met.id AND (i.expire = 0 OR i.expire > $3) ORDER BY i.id LIMIT 1)
				FROM met WHERE met.id IS NOT NULL
			) SELECT id FROM met WHERE id IS NOT NULL LIMIT $4`),
		sweepItems: in(`WITH old AS (SELECT space, id, key FROM {s}.item WHERE expire > 0 AND expire <= $1 ORDER BY expire LIMIT $2 FOR UPDATE SKIP LOCKED),
			gone AS (DELETE FROM {s}.item i USING old WHERE i.space = old.space AND i.id = old.id AND i.key = old.key RETURNING i.large),
			parts AS (INSERT INTO {s}.unfinished SELECT large, 0 FROM gone WHERE large IS NOT NULL ON CONFLICT DO NOTHING)
			SELECT count(*) FROM gone`),
		sweepTokens: in(`WITH old AS (SELECT space, id, nonce FROM {s}.token WHERE until <= $1 ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED)
			DELETE FROM {s}.token t USING old WHERE t.space = old.space AND t.id = old.id AND t.nonce = old.nonce`),
		giveUpOld: in("UPDATE {s}.unfinished SET touched = 0 WHERE touched > 0 AND touched <= $1"),
		partsOf:   in("SELECT large FROM {s}.unfinished WHERE touched = 0 LIMIT 1 FOR UPDATE SKIP LOCKED"),
		dropPart:  in("DELETE FROM {s}.part WHERE large = $1 AND number IN (SELECT number FROM {s}.part WHERE large = $1 LIMIT $2)"),
		dropLarge: in("DELETE FROM {s}.unfinished WHERE large = $1"),
		begin:     in("INSERT INTO {s}.unfinished VALUES ($1, $2) ON CONFLICT DO NOTHING"),
		part: in(`WITH known AS (UPDATE {s}.unfinished SET touched = $2 WHERE large = $1 AND touched > 0 RETURNING large)
			INSERT INTO {s}.part SELECT large, $3, $4, $5 FROM known ON CONFLICT (large, number) DO UPDATE SET data = EXCLUDED.data`),
		giveUp:   in("UPDATE {s}.unfinished SET touched = 0 WHERE large = $1"),
		readPart: in("SELECT sum, data FROM {s}.part WHERE large = $1 AND number = $2"),
		scan:     map[scanKind]string{},
	}
	for _, k := range scanKinds() {
		t.scan[k] = in(k.text())
	}
	return t
}

// stored is an item as it is stored.
type stored struct {
	driver.Item
	expire int64 // milliseconds since 1970; 0: never
	large  []byte
	meta   []byte
}

// lookup is a statement that reads one item, and what it met, in one piece: there is one for each Get.
type lookup struct {
	request
	item           stored
	found          bool
	modified, size int64
	params         [3]any
	columns        [7]any
}

// lookUp makes a statement that reads one item.
func (i *Instance) lookUp(space driver.Space, name driver.Name, headOnly bool) *lookup {
	l := &lookup{params: [3]any{[]byte(space), blob(name.ID), blob(name.Key)}}
	l.item.Name = name
	l.columns = [7]any{&l.item.Version, &l.item.expire, &l.modified, &l.size, &l.item.meta, &l.item.large, &l.item.Value}
	l.text, l.args, l.read = i.texts.get, l.params[:], l.take
	if headOnly {
		l.text = i.texts.head
	}
	return l
}

// take reads the answer.
func (l *lookup) take(rows pgx.Rows) error {
	l.found = false
	for rows.Next() {
		l.found = true
		if err := rows.Scan(l.columns[:]...); err != nil {
			return err
		}
		l.item.ModifiedAt, l.item.Size = time.UnixMicro(l.modified).UTC(), uint64(l.size)
	}
	return nil
}

// visible is the item that was met; nil when there is none, or it is expired.
func (i *Instance) visible(l *lookup, headOnly bool) (*driver.Item, error) {
	it := &l.item
	if !l.found || driver.Expired(it.expire, i.now()) {
		return nil, nil
	}
	if err := it.decode(); err != nil {
		return nil, err
	}
	if it.large != nil {
		it.Value = nil
		if !headOnly {
			return nil, driver.TooLarge(it.Size)
		}
	}
	return &it.Item, nil
}

func (it *stored) decode() error {
	it.ExpireAt = driver.ExpireTime(it.expire)
	var ok bool
	if it.ContentType, it.Metadata, ok = decodeMeta(it.meta); !ok {
		return fault.New(fault.DataLoss, fault.Checksum, "the stored item cannot be read")
	}
	return nil
}

// Get reads one row, together with what others read at the moment.
func (i *Instance) Get(ctx context.Context, space driver.Space, name driver.Name, headOnly bool) (*driver.Item, error) {
	if err := i.prepared(ctx); err != nil {
		return nil, failed(err)
	}
	l := i.lookUp(space, name, headOnly)
	if f := i.reads.do(ctx, &l.request); f != nil {
		return nil, i.failed(f)
	}
	return i.visible(l, headOnly)
}

// BatchGet sends all reads at once.
func (i *Instance) BatchGet(ctx context.Context, space driver.Space, names []driver.Name, headOnly bool) []driver.GetResult {
	results := make([]driver.GetResult, len(names))
	if err := i.prepared(ctx); err != nil {
		for n := range results {
			results[n].Err = failed(err)
		}
		return results
	}
	lookups, requests := make([]*lookup, len(names)), make([]*request, len(names))
	for n, name := range names {
		lookups[n] = i.lookUp(space, name, headOnly)
		requests[n] = &lookups[n].request
	}
	for n, f := range i.reads.doAll(ctx, requests) {
		if f != nil {
			results[n].Err = i.failed(f)
			continue
		}
		results[n].Item, results[n].Err = i.visible(lookups[n], headOnly)
	}
	return results
}

// failed is the fault of a read.
func failed(err error) error {
	if f, ok := errors.AsType[*fault.Fault](err); ok {
		return f.WithOutcome("")
	}
	return err
}

// failed is the fault of a read; missing tables are looked for again.
func (i *Instance) failed(f *fault.Fault) error { return failed(i.forget(f)) }

// forget makes the next call look for the schema when the tables are gone.
func (i *Instance) forget(f *fault.Fault) *fault.Fault {
	switch state(f.Unwrap()) {
	case "3F000", "42P01", "42883":
		i.ready.Store(false)
	}
	return f
}

// Write is one call of a function.
func (i *Instance) Write(ctx context.Context, space driver.Space, w driver.Write) (driver.Written, error) {
	results := i.BatchWrite(ctx, space, []driver.Write{w})
	return results[0].Written, results[0].Err
}

// BatchWrite sends all writes at once.
func (i *Instance) BatchWrite(ctx context.Context, space driver.Space, writes []driver.Write) []driver.WriteResult {
	results := make([]driver.WriteResult, len(writes))
	if err := i.prepared(ctx); err != nil {
		for n := range results {
			results[n].Err = err
		}
		return results
	}
	now := i.now()
	requests, answers := make([]*request, len(writes)), make([]*answer, len(writes))
	for n, w := range writes {
		requests[n], answers[n] = i.write(space, w, nil, now)
	}
	for n, f := range i.writes.doAll(ctx, requests) {
		if f != nil {
			results[n].Err = i.forget(f)
			continue
		}
		results[n].Written, results[n].Err = answers[n].written(writes[n])
	}
	return results
}

// large is a value that was written in parts.
type large struct {
	name []byte
	size uint64
}

// answer is what a function returned.
type answer struct {
	status  int32
	current []byte
	at      int64
	existed bool
	version []byte // that the write gave
	old     stored
}

// write makes the call that does a write.
func (i *Instance) write(space driver.Space, w driver.Write, value *large, now time.Time) (*request, *answer) {
	a := &answer{}
	if w.Op != driver.Delete {
		a.version = i.versions.Next()
	}
	var name []byte
	var size int64
	if value != nil {
		name, size = value.name, int64(value.size)
	}
	lock := lockOf(space, w.ID)
	r := &request{text: i.texts.write, lock: lock, args: []any{
		lock, []byte(space), blob(w.ID), blob(w.Key), int32(w.Op), int32(w.Condition), blob(w.Version), now.UnixMilli(),
		driver.ExpireMillis(w.ExpireAt), w.KeepExpiry, a.version, now.UnixMicro(), encodeMeta(w.ContentType, w.Metadata), blob(w.Value), name, size, w.Previous,
	}}
	if w.Token != nil {
		r.text = i.texts.writeOnce
		r.args = append(r.args, tokenArgs(w.Token)...)
	}
	r.read = func(rows pgx.Rows) error {
		for rows.Next() {
			var expire, modified, oldSize *int64
			if err := rows.Scan(&a.status, &a.current, &a.at, &a.existed, &a.old.Version, &expire, &modified, &oldSize, &a.old.meta, &a.old.large, &a.old.Value); err != nil {
				return err
			}
			if expire != nil && modified != nil && oldSize != nil {
				a.old.expire, a.old.ModifiedAt, a.old.Size = *expire, time.UnixMicro(*modified).UTC(), uint64(*oldSize)
			}
		}
		return nil
	}
	return r, a
}

// tokenArgs are a token's nonce, request and end; NULL without one.
func tokenArgs(t *driver.Token) []any {
	if t == nil {
		return []any{nil, nil, nil}
	}
	return []any{t.Nonce[:], t.Request[:], driver.ExpireMillis(t.Until)}
}

// written is what an answer says of a write.
func (a *answer) written(w driver.Write) (driver.Written, error) {
	switch a.status {
	case refused:
		if err := w.Refusal(a.current); err != nil {
			return driver.Written{}, err
		}
		return driver.Written{}, oddAnswer()
	case late:
		return driver.Written{}, tooSlow()
	case reused:
		return driver.Written{}, driver.Reused()
	case duplicate:
		a.version = a.current
	}
	result := driver.Written{Version: a.version, ExpireAt: driver.ExpireTime(a.at), Existed: a.existed, Duplicate: a.status == duplicate}
	if w.Previous && a.existed {
		it := a.old
		it.Name = w.Name
		if err := it.decode(); err != nil {
			return driver.Written{}, err
		}
		if it.large != nil {
			it.Value = nil
		} else {
			it.Size = 0
		}
		result.Previous = &it.Item
	}
	return result, nil
}

func oddAnswer() error {
	return fault.New(fault.Internal, fault.Bug, "internal error").WithOutcome(fault.OutcomeUnknown)
}

// lockOf is the advisory lock of an id.
func lockOf(space driver.Space, id []byte) int64 {
	b := make([]byte, 0, 256)
	return int64(xxhash.Sum64(append(appendString(b, string(space)), id...)))
}

// blob is b as it is to be sent: an empty one is not NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// encodeMeta writes the content type and the metadata, each string behind its length; nothing for none.
func encodeMeta(contentType string, metadata map[string]string) []byte {
	b := []byte{}
	if contentType == "" && len(metadata) == 0 {
		return b
	}
	b = appendString(b, contentType)
	for k, v := range metadata {
		b = appendString(appendString(b, k), v)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func decodeMeta(b []byte) (contentType string, metadata map[string]string, ok bool) {
	var words []string
	for len(b) > 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return "", nil, false
		}
		words = append(words, string(b[size:size+int(n)]))
		b = b[size+int(n):]
	}
	if len(words) == 0 {
		return "", nil, true
	}
	if len(words)%2 != 1 {
		return "", nil, false
	}
	for n := 1; n < len(words); n += 2 {
		if metadata == nil {
			metadata = make(map[string]string, len(words)/2)
		}
		metadata[words[n]] = words[n+1]
	}
	return words[0], metadata, true
}
