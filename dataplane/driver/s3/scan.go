package s3

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// listed is an object of an id, as the store lists it.
type listed struct {
	object string
	key    []byte
	size   int64 // of the object
}

// names yields an id's objects in the order of their keys, from a key on. Names hold only the beginning of long keys, so
// those that begin alike are read to put them in order. It ends at the first fault.
func (c *call) names(space driver.Space, r driver.Range, page int32) iter.Seq2[listed, *fault.Fault] {
	return func(yield func(listed, *fault.Fault) bool) {
		path := c.i.idPath(space, r.ID)
		var alike []listed // of long keys that have one beginning
		var beginning []byte
		// flush yields those, in order.
		flush := func() bool {
			if f := c.keys(alike); f != nil {
				yield(listed{}, f)
				return false
			}
			slices.SortFunc(alike, func(a, b listed) int { return bytes.Compare(a.key, b.key) })
			for _, o := range alike {
				if o.key != nil && within(r, o.key) && !yield(o, nil) {
					return false
				}
			}
			alike = nil
			return true
		}
		in := &s3.ListObjectsV2Input{Bucket: &c.i.bucket, Prefix: aws.String(path + keyMark), MaxKeys: &page}
		if len(r.Start) > 0 {
			in.StartAfter = aws.String(path + keySegments(r.Start))
		}
		for {
			c.sent.Store(false)
			out, err := c.i.client.ListObjectsV2(c.ctx, in)
			if err != nil {
				yield(listed{}, c.fault(err))
				return
			}
			for _, o := range out.Contents {
				key, long, err := keyOf(strings.TrimPrefix(aws.ToString(o.Key), path))
				if err != nil || aws.ToInt64(o.Size) == traceSize {
					continue // somebody else's, or removed
				}
				l := listed{object: aws.ToString(o.Key), key: key, size: aws.ToInt64(o.Size)}
				if len(alike) > 0 && (!long || !bytes.Equal(beginning, key)) && !flush() {
					return
				}
				switch {
				case r.End != nil && bytes.Compare(key, r.End) >= 0:
					flush()
					return
				case long:
					alike, beginning = append(alike, l), key
				case !within(r, key): // the beginning of a long start
				case !yield(l, nil):
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				flush()
				return
			}
			in.ContinuationToken, in.MaxKeys = out.NextContinuationToken, aws.Int32(maxPage)
		}
	}
}

func within(r driver.Range, key []byte) bool {
	return bytes.Compare(key, r.Start) >= 0 && (r.End == nil || bytes.Compare(key, r.End) < 0)
}

// keys reads the keys of objects whose names have only the beginning of theirs; of one that is gone it makes nil.
func (c *call) keys(objects []listed) *fault.Fault {
	faults := make([]*fault.Fault, len(objects))
	each(len(objects), func(n int) {
		var s *stored
		if s, faults[n] = c.look(objects[n].object, driver.Name{}, false); s.there() {
			objects[n].key = s.header.name.Key
		} else {
			objects[n].key = nil
		}
	})
	return firstOf(faults)
}

func firstOf(faults []*fault.Fault) *fault.Fault {
	for _, f := range faults {
		if f != nil {
			return f
		}
	}
	return nil
}

// Scan lists an id's objects and reads those of the page. From the last to the first it lists the whole range, since a
// store lists in one direction only.
func (i *Instance) Scan(ctx context.Context, space driver.Space, r driver.Range) ([]driver.Item, bool, error) {
	c, f := i.begin(ctx, maxWait)
	if f != nil {
		return nil, false, f.WithOutcome("")
	}
	defer c.end()
	p := &page{call: c, r: r}
	if r.Reverse {
		f = p.reversed(space)
	} else {
		f = p.forward(space)
	}
	if f != nil {
		return nil, false, f.WithOutcome("")
	}
	return p.items, p.more, nil
}

// maxPage is the most names that a store lists at once.
const maxPage = 1000

// page is a page of a scan that is being made.
type page struct {
	call  *call
	r     driver.Range
	items []driver.Item
	size  int // bytes of the items
	more  bool
}

func (p *page) full() bool {
	return len(p.items) == p.r.Limit || (len(p.items) > 0 && p.size >= p.r.MaxBytes)
}

func (p *page) forward(space driver.Space) *fault.Fault {
	var chunk []listed
	for o, f := range p.call.names(space, p.r, int32(min(p.r.Limit+1, maxPage))) {
		if f != nil {
			return f
		}
		if p.enough(chunk) {
			if f := p.read(chunk); f != nil {
				return f
			}
			chunk = nil
		}
		if p.full() {
			p.more = true
			return nil
		}
		chunk = append(chunk, o)
	}
	return p.rest(chunk)
}

func (p *page) reversed(space driver.Space) *fault.Fault {
	var last []listed // of those so far
	left := false
	for o, f := range p.call.names(space, p.r, maxPage) {
		if f != nil {
			return f
		}
		if last = append(last, o); len(last) > 2*(p.r.Limit+1) {
			last, left = append([]listed{}, last[len(last)-p.r.Limit-1:]...), true
		}
	}
	slices.Reverse(last)
	if f := p.rest(last); f != nil {
		return f
	}
	p.more = p.more || left
	return nil
}

// rest reads what was listed until the page is full, and says whether there is more of it.
func (p *page) rest(all []listed) *fault.Fault {
	for len(all) > 0 && !p.full() {
		n := 1
		for n < len(all) && !p.enough(all[:n]) {
			n++
		}
		if f := p.read(all[:n]); f != nil {
			return f
		}
		all = all[n:]
	}
	p.more = p.more || len(all) > 0
	return nil
}

// enough says whether what was listed is to be read before more is: it fills the page, or is as much as is read at once.
func (p *page) enough(chunk []listed) bool {
	if len(chunk) >= min(atOnce, p.r.Limit-len(p.items)) {
		return true
	}
	size := 0
	for _, o := range chunk {
		if size += len(p.r.ID) + len(o.key); !p.r.KeysOnly && o.size <= maxObject {
			size += int(o.size)
		}
	}
	return len(chunk) > 0 && p.size+size >= p.r.MaxBytes
}

// read reads objects and puts their items on the page. Those that are gone are left out.
func (p *page) read(chunk []listed) *fault.Fault {
	items := make([]*driver.Item, len(chunk))
	faults := make([]*fault.Fault, len(chunk))
	each(len(chunk), func(n int) {
		o := chunk[n]
		items[n], faults[n] = p.call.read(o.object, driver.Name{ID: p.r.ID, Key: o.key}, p.r.KeysOnly || o.size > maxObject)
	})
	if f := firstOf(faults); f != nil {
		return f
	}
	for n, it := range items {
		switch {
		case it == nil:
			continue
		case p.full():
			p.more = true
			return nil
		}
		it.Name = cloned(driver.Name{ID: p.r.ID, Key: chunk[n].key})
		p.items = append(p.items, *it)
		p.size += len(it.ID) + len(it.Key) + len(it.Value)
	}
	return nil
}

// ListIDs lists objects and goes from the first of an id to the next id's, unless that is on the same page of the store's.
// The cursor is the part of the names that stands for the last id.
func (i *Instance) ListIDs(ctx context.Context, space driver.Space, cursor []byte, limit int) ([][]byte, []byte, error) {
	c, f := i.begin(ctx, maxWait)
	if f != nil {
		return nil, nil, f.WithOutcome("")
	}
	defer c.end()
	path := i.spacePath(space)
	in := &s3.ListObjectsV2Input{Bucket: &i.bucket, Prefix: &path, MaxKeys: aws.Int32(int32(min(limit+1, maxPage)))}
	last := string(cursor) // the newest id that was met with an item
	if last != "" {
		if _, err := idOf(last); err != nil {
			return nil, nil, fault.New(fault.Invalid, fault.PageToken, "the page token is none of this backend's")
		}
		in.StartAfter = aws.String(path + last + afterSlash)
	}
	var ids [][]byte
	for {
		c.sent.Store(false)
		out, err := i.client.ListObjectsV2(c.ctx, in)
		if err != nil {
			return nil, nil, c.fault(err).WithOutcome("")
		}
		after := ""
		for _, o := range out.Contents {
			after = aws.ToString(o.Key)
			segment, _, _ := strings.Cut(strings.TrimPrefix(after, path), "/")
			id, err := idOf(segment)
			if err != nil || segment == last || aws.ToInt64(o.Size) == traceSize {
				continue
			}
			if len(ids) == limit {
				return ids, []byte(last), nil
			}
			if id == nil {
				if id, f = c.longID(after); f != nil {
					return nil, nil, f.WithOutcome("")
				}
			}
			if id != nil {
				ids, last = append(ids, id), segment
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return ids, nil, nil
		}
		if last != "" && strings.HasPrefix(after, path+last+"/") { // its other objects tell nothing new
			after = path + last + afterSlash
		}
		in.StartAfter, in.MaxKeys = &after, aws.Int32(maxPage)
	}
}

// longID reads the id of an object; nil when it is gone.
func (c *call) longID(object string) ([]byte, *fault.Fault) {
	s, f := c.look(object, driver.Name{}, false)
	if !s.there() {
		return nil, f
	}
	return s.header.name.ID, nil
}
