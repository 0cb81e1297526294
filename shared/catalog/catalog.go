// Package catalog says what this build of Prism knows: backend types, patterns, interfaces, and the rules by which a
// need becomes a choice. It is data; both planes read it and neither changes it.
package catalog

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
)

// BackendType is a kind of store.
type BackendType struct {
	// Name is how backends and slots name it: redis.
	Name string
	// Interfaces are what this build's driver offers, sorted; none without a driver.
	Interfaces []string
	// Offered says that this build has a driver for it.
	Offered bool
	// Durability is the strongest that acknowledged data has there.
	Durability configv1.Durability
	// Consistency is the strongest that a read has there.
	Consistency configv1.Consistency
	// SingleProcess says that the data lives inside one proxy and dies with it.
	SingleProcess bool
	// SingleMachine says that all proxies that use it must run on one machine.
	SingleMachine bool
	// Slow says that a call takes tens of milliseconds, so that an instance is chosen only where no faster store fits.
	Slow bool
	// MaxValueBytes is the largest value; 0 without a driver.
	MaxValueBytes uint64
	// TTLGranularity is how exactly an item's expiry is kept; 0 where items cannot expire.
	TTLGranularity time.Duration
	// NeedsEndpoint says that an instance must be given an address or a file.
	NeedsEndpoint bool
	// Address is the form of an endpoint, for people: host:port, or a file.
	Address Address
	// MaxEndpoints is how many an instance may be given; 0 means any number.
	MaxEndpoints int
	// Settings are what an instance's config may hold, by name.
	Settings []Setting
}

// Setting is one setting of a type's instances.
type Setting struct {
	// Name is its key in config.
	Name string
	// Form is what its value must look like.
	Form Form
	// Values are those that it can have, for OneOf.
	Values []string
	// Durability is the strongest that an instance has with a value; values that are not here change nothing.
	Durability map[string]configv1.Durability
	// Text says in one line what it does.
	Text string
}

// Form is what a setting's value looks like.
type Form int

// The forms.
const (
	Number   Form = iota // a whole number from 0
	Duration             // a positive duration such as 10s
	OneOf                // one of Setting.Values
	Text                 // any, but not empty
)

// Address is the form that a type's endpoints have.
type Address int

// The forms.
const (
	NoAddress   Address = iota // the store lives in the proxy
	HostPort                   // host:port
	FileAddress                // one path of a file
)

// Interface is a thin capability that a pattern needs and a backend offers.
type Interface struct {
	// Name is how requests name it: keyvalue.scan.
	Name string
	// Text says in one line what it gives.
	Text string
	// Patterns are the types that may ask for it.
	Patterns []string
}

// Pattern is something that an application can ask for.
type Pattern struct {
	// Type is how requests name it: keyvalue.
	Type string
	// Versions are those that this build runs, newest first.
	Versions []string
	// Offered says that this build runs it at all.
	Offered bool
	// Base are the interfaces that it always needs, sorted.
	Base []string
	// Slots are the backends that it depends on.
	Slots []Slot
	// Messages says that it carries messages: it takes max_message_size, retention and ordering.
	Messages bool
	// Values says that it keeps values: it takes ttl and max_value_size.
	Values bool
	// Text says in one line what it is.
	Text string
}

// Slot is a dependency of a pattern.
type Slot struct {
	// Purpose is the first half of the slot's name: storage.
	Purpose string
	// Optional slots are bound only when a rule or the request asks for them.
	Optional bool
	// Copies says that the backend holds only copies: it needs no durability and no consistency, and is to be fast.
	Copies bool
	// Interfaces are what the slot's backend must have, sorted; none means those of the pattern.
	Interfaces []string
	// Text says in one line what the backend is used for.
	Text string
}

// Rule says what follows from one need. Rules do not depend on each other and are read in order.
type Rule struct {
	// ID is stable: select.durability.strong.
	ID string
	// Patterns are the types that it is for; none means all.
	Patterns []string
	// Need is the field of Needs that it looks at.
	Need string
	// Value is the short name of the enum value that it matches; empty matches any that is set, and for enums left
	// unset none.
	Value string
	// Unset matches when the need is not given.
	Unset bool
	// Choice is what follows: an interface that is added, the purpose of an optional slot that is bound, or the short name
	// of the enum value in force.
	Choice string
	// Interface says that Choice is an interface to add, Slot that it is the purpose of a slot.
	Interface, Slot bool
	// Reason says why, for people.
	Reason string
}

// Types returns the backend types by name.
func Types() []BackendType { return slices.Clone(types) }

// Type returns the backend type of that name.
func Type(name string) (BackendType, bool) {
	for _, t := range types {
		if t.Name == name {
			return t, true
		}
	}
	return BackendType{}, false
}

// Setting returns the setting of that name.
func (t BackendType) Setting(name string) (Setting, bool) {
	i := slices.IndexFunc(t.Settings, func(s Setting) bool { return s.Name == name })
	if i < 0 {
		return Setting{}, false
	}
	return t.Settings[i], true
}

// DurabilityWith is the strongest that acknowledged data has on an instance with these settings.
func (t BackendType) DurabilityWith(config map[string]string) configv1.Durability {
	d := t.Durability
	for _, s := range t.Settings {
		if with, ok := s.Durability[config[s.Name]]; ok {
			d = min(d, with)
		}
	}
	return d
}

// Patterns returns the patterns, the most used first.
func Patterns() []Pattern { return slices.Clone(patterns) }

// PatternByType returns the pattern of that type.
func PatternByType(name string) (Pattern, bool) {
	for _, p := range patterns {
		if p.Type == name {
			return p, true
		}
	}
	return Pattern{}, false
}

// SlotFor returns the pattern's slot of that purpose.
func (p Pattern) SlotFor(purpose string) (Slot, bool) {
	i := slices.IndexFunc(p.Slots, func(s Slot) bool { return s.Purpose == purpose })
	if i < 0 {
		return Slot{}, false
	}
	return p.Slots[i], true
}

// Interfaces returns all interfaces that Prism knows, by name, whether this build offers them or not.
func Interfaces() []Interface { return slices.Clone(interfaces) }

// InterfaceByName returns the interface of that name.
func InterfaceByName(name string) (Interface, bool) {
	i, ok := slices.BinarySearchFunc(interfaces, name, func(f Interface, n string) int {
		switch {
		case f.Name < n:
			return -1
		case f.Name > n:
			return 1
		}
		return 0
	})
	if !ok {
		return Interface{}, false
	}
	return interfaces[i], true
}

// InterfaceOffered reports whether a driver of this build offers the interface.
func InterfaceOffered(name string) bool {
	return slices.ContainsFunc(types, func(t BackendType) bool { return t.Offered && slices.Contains(t.Interfaces, name) })
}

// Rules returns the rules of selection in order.
func Rules() []Rule { return slices.Clone(rules) }

// DefaultLimits returns the bounds of a namespace that sets none. RPS 0 means that calls are not counted: without a
// profile the platform bounds how many calls are under way, not how many come in a second.
func DefaultLimits() *configv1.Limits {
	return &configv1.Limits{
		Rps:             0,
		Concurrency:     1024,
		DefaultDeadline: durationpb.New(5 * time.Second),
		MaxDeadline:     durationpb.New(60 * time.Second),
	}
}
