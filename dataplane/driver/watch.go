package driver

import "context"

// Watcher is the capability keyvalue.watch.
type Watcher interface {
	// Watch follows the changes of an id. It calls send with nothing once it is in place: every change acknowledged
	// after that comes. Then it calls send with each change, in the order in which they were made, those of one key
	// never out of order, none left out and none twice; where that cannot be kept, such as when After is too old or the
	// store was away, it sends a Resync first and goes on from then. It returns when ctx ends, with a nil error; when
	// send fails, with its error; or with a fault when the store fails for good. send does not block and must not keep
	// the slice.
	Watch(ctx context.Context, space Space, from From, send func([]Event) error) error
}

// From says what to follow.
type From struct {
	ID     []byte
	Prefix []byte // only keys that begin so
	// After is the version of the last event seen; empty: from now on.
	After []byte
}

// EventKind is what happened to an item.
type EventKind int

// The kinds.
const (
	Changed EventKind = iota + 1 // it was written; the event has the item
	Deleted                      // it was removed; the event has its name
	Lapsed                       // its time ran out; the event has its name
	Resync                       // changes may have been missed: read again what matters
)

// Event is one change. Its item's version is where Watch can go on After it, also for a removal; that of a Resync may be
// empty.
type Event struct {
	Kind EventKind
	Item Item
}
