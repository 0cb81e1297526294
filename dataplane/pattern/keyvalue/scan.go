package keyvalue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// The bounds of pages.
const (
	DefaultPage      = 1000
	MaxPage          = 10000
	DefaultPageBytes = 1 << 20
	MaxPageBytes     = 3 << 20
)

// firstChunk is how many items are asked for at first: a page of the default size is one question to the backend, and a
// larger one looks at the clock between questions.
const firstChunk = DefaultPage

// afterKey begins the position of a scan, which is the key it goes on after; an empty position is the beginning.
const afterKey = 1

// Scan is a query for a run of keys of one id.
type Scan struct {
	ID       []byte
	Prefix   []byte
	Start    []byte // inclusive; empty: from the first
	End      []byte // exclusive; empty: to the last
	Reverse  bool
	KeysOnly bool
	Limit    int // 0: the default
	MaxBytes int // 0: the default
	Token    []byte

	deletes bool // it is the query of a DeleteRange
}

// Page is a part of a scan's answer.
type Page struct {
	Items []driver.Item
	// Next is the token with which the scan goes on; nil at the end.
	Next []byte
	// Cut says that the page is short because the deadline was near.
	Cut bool
}

// Scan returns a page of items in byte order of their keys. An item that is there during the whole scan comes exactly
// once. When one item was read there is no error.
func (s *Store) Scan(ctx context.Context, q Scan) (Page, error) {
	if s.scanner == nil {
		return Page{}, Missing(ScanKeys)
	}
	if v := q.check(); v != nil {
		return Page{}, invalid(v)
	}
	now := s.cfg.Now()
	var position []byte
	if len(q.Token) > 0 {
		opened, err := s.tokens.open(q.Token, q.digest(), now)
		if err != nil {
			return Page{}, err
		}
		if len(opened) > 0 { // none: from the beginning
			position = opened[1:]
		}
	}
	r, empty := q.bounds(position)
	if empty {
		return Page{}, nil
	}
	if err := s.begin(ctx); err != nil {
		return Page{}, err
	}
	page, more, err := s.page(ctx, q, r)
	s.cfg.Breaker.End(err)
	if err != nil {
		return Page{}, err
	}
	if more && len(page.Items) > 0 {
		last := page.Items[len(page.Items)-1].Key
		page.Next = s.tokens.seal(q.digest(), append([]byte{afterKey}, last...), now)
	}
	return page, nil
}

// page reads until a bound is reached or four fifths of the time are over.
func (s *Store) page(ctx context.Context, q Scan, r driver.Range) (page Page, more bool, err error) {
	limit, maxBytes := q.Limit, q.MaxBytes
	if limit == 0 {
		limit = DefaultPage
	}
	if maxBytes == 0 {
		maxBytes = DefaultPageBytes
	}
	cut := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		cut, cancel = context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/5))
		defer cancel()
	}
	size, more := 0, true
	for more && len(page.Items) < limit && size < maxBytes {
		if len(page.Items) > 0 && cut.Err() != nil {
			page.Cut = true
			break
		}
		r.Limit, r.MaxBytes = min(firstChunk, limit-len(page.Items)), maxBytes-size
		items, rest, err := s.scanner.Scan(cut, s.cfg.Space, r)
		if err != nil && cut.Err() != nil && ctx.Err() == nil && len(page.Items) == 0 {
			// Not even the first question was answered in time: one item is progress.
			page.Cut, r.Limit = true, 1
			items, rest, err = s.scanner.Scan(ctx, s.cfg.Space, r)
		}
		if err != nil && len(page.Items) > 0 {
			page.Cut = true
			break
		}
		if err != nil {
			return Page{}, false, err
		}
		more = rest
		for i := range items {
			size += sizeOf(&items[i]) - len(items[i].Value)
			if !q.KeysOnly {
				size += len(items[i].Value)
			}
			if size > maxBytes && len(page.Items) > 0 {
				more = true
				break
			}
			page.Items = append(page.Items, items[i])
		}
		if page.Cut || len(items) == 0 {
			break
		}
		r = q.after(r, page.Items[len(page.Items)-1].Key)
	}
	if page.Cut && !more {
		page.Cut = false // nothing was left out after all
	}
	return page, more, nil
}

func (q Scan) check() (v []fault.Violation) {
	if len(q.ID) == 0 || len(q.ID) > MaxIDBytes {
		v = append(v, violation("id", "id.length", fmt.Sprintf("is %d bytes long, want 1 to %d", len(q.ID), MaxIDBytes)))
	}
	for _, f := range []struct {
		name  string
		value []byte
	}{{"prefix", q.Prefix}, {"start", q.Start}, {"end", q.End}} {
		if len(f.value) > MaxKeyBytes {
			v = append(v, violation(f.name, "key.length", fmt.Sprintf("is %d bytes long, want at most %d", len(f.value), MaxKeyBytes)))
		}
	}
	if q.Limit < 0 || q.Limit > MaxPage {
		v = append(v, violation("limit", "page.size", fmt.Sprintf("is %d, want at most %d", q.Limit, MaxPage)))
	}
	if q.MaxBytes < 0 || q.MaxBytes > MaxPageBytes {
		v = append(v, violation("max_bytes", "page.size", fmt.Sprintf("is %d, want at most %d", q.MaxBytes, MaxPageBytes)))
	}
	return v
}

// bounds is the run of keys that the query asks for, after position if that is not nil.
func (q Scan) bounds(position []byte) (r driver.Range, empty bool) {
	r = driver.Range{ID: q.ID, Start: q.Start, Reverse: q.Reverse, KeysOnly: q.KeysOnly}
	if bytes.Compare(q.Prefix, r.Start) > 0 {
		r.Start = q.Prefix
	}
	if len(q.End) > 0 {
		r.End = q.End
	}
	if end := afterPrefix(q.Prefix); end != nil && (r.End == nil || bytes.Compare(end, r.End) < 0) {
		r.End = end
	}
	if position != nil {
		r = q.after(r, position)
	}
	return r, r.End != nil && bytes.Compare(r.Start, r.End) >= 0
}

// after narrows r to what comes after key. A key from a token never widens it.
func (q Scan) after(r driver.Range, key []byte) driver.Range {
	if q.Reverse {
		if r.End == nil || bytes.Compare(key, r.End) < 0 {
			r.End = append([]byte{}, key...)
		}
		return r
	}
	if next := append(bytes.Clone(key), 0); bytes.Compare(next, r.Start) > 0 {
		r.Start = next
	}
	return r
}

// afterPrefix is the first key after all keys that begin with prefix; nil when there is none.
func afterPrefix(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

// ListIDs returns a page of the namespace's ids, in no order, each at least once over all pages.
func (s *Store) ListIDs(ctx context.Context, limit int, token []byte) (ids [][]byte, next []byte, err error) {
	if s.lister == nil {
		return nil, nil, Missing(List)
	}
	if limit < 0 || limit > MaxPage {
		return nil, nil, Invalid(violation("limit", "page.size", fmt.Sprintf("is %d, want at most %d", limit, MaxPage)))
	}
	if limit == 0 {
		limit = DefaultPage
	}
	now := s.cfg.Now()
	var cursor []byte
	if len(token) > 0 {
		if cursor, err = s.tokens.open(token, listDigest, now); err != nil {
			return nil, nil, err
		}
	}
	if err := s.begin(ctx); err != nil {
		return nil, nil, err
	}
	ids, after, err := s.lister.ListIDs(ctx, s.cfg.Space, cursor, limit)
	s.cfg.Breaker.End(err)
	if err != nil || after == nil {
		return ids, nil, err
	}
	if len(after) > maxPosition {
		return nil, nil, fault.Wrap(errors.New("the driver's cursor is too long"), fault.Internal, fault.Bug, "internal error")
	}
	return ids, s.tokens.seal(listDigest, after, now), nil
}
