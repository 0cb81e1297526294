// Package assignment is the third stage of the pipeline: from slots to backends. It filters the registered backends,
// scores those that fit, and says why for each.
//
// It is pure: the same input gives the same output, in whatever order the backends come.
package assignment

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/selection"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Reserved is what namespaces hold on one backend.
type Reserved struct {
	Namespaces, ReadRPS, WriteRPS, DataBytes uint64
}

// Add returns the sum of two.
func (r Reserved) Add(o Reserved) Reserved {
	return Reserved{r.Namespaces + o.Namespaces, r.ReadRPS + o.ReadRPS, r.WriteRPS + o.WriteRPS, r.DataBytes + o.DataBytes}
}

// within reports whether r is at most o in everything that is reserved.
func (r Reserved) within(o Reserved) bool {
	return r.ReadRPS <= o.ReadRPS && r.WriteRPS <= o.WriteRPS && r.DataBytes <= o.DataBytes
}

// Backend is one registered backend with what others hold on it: the namespace that is being assigned is not among
// them.
type Backend struct {
	*configv1.Backend
	Reserved Reserved
}

// Assignment is what was chosen.
type Assignment struct {
	// Bindings are those of each pattern, in the order of the selection.
	Bindings [][]*configv1.Binding
	// Reservations are what the namespace holds, one for each backend, by name.
	Reservations []*configv1.Reservation
	// SingleOwner says that a backend lives inside one process.
	SingleOwner bool
	// Decisions say why, one for each slot.
	Decisions []*configv1.Decision
}

// Current is what the namespace that is being assigned has now; the zero value has nothing.
type Current struct {
	// Bindings are its backends, by SlotKey.
	Bindings map[string]string
	// Held is what it reserved, by backend.
	Held map[string]Reserved
}

// Assign binds every slot. A present binding that still fits is kept; it fits without regard to capacity when no more
// is asked for than is held. When a slot fits no backend the error is a fault, FAILED_PRECONDITION and NO_BACKEND, that names every
// backend with the reason.
func Assign(s selection.Selection, backends []Backend, current Current) (Assignment, error) {
	pool := slices.SortedFunc(slices.Values(backends), func(a, b Backend) int { return strings.Compare(a.GetName(), b.GetName()) })
	var out Assignment
	own := map[string]Reserved{}
	for _, p := range s.Patterns {
		var bindings []*configv1.Binding
		for _, slot := range p.Slots {
			chosen, decision, err := choose(s.Region, p, slot, pool, own, current)
			if err != nil {
				return Assignment{}, err
			}
			own[chosen.GetName()] = own[chosen.GetName()].Add(wants(p))
			t, _ := catalog.Type(chosen.GetType())
			out.SingleOwner = out.SingleOwner || t.SingleProcess
			bindings = append(bindings, bind(slot, chosen.Backend, s.Credential))
			out.Decisions = append(out.Decisions, decision)
		}
		out.Bindings = append(out.Bindings, bindings)
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		r := own[name]
		out.Reservations = append(out.Reservations, &configv1.Reservation{
			Backend: name, ReadRps: clamp(r.ReadRPS), WriteRps: clamp(r.WriteRPS), DataBytes: r.DataBytes,
		})
	}
	return out, nil
}

// bind binds a slot to a backend. The credential is the slot's own, or the one that the namespace names for its callers, or
// the backend's, which all callers share.
func bind(slot selection.Slot, to *configv1.Backend, callers selection.Credential) *configv1.Binding {
	b := &configv1.Binding{Slot: slot.Purpose + "-" + to.GetType(), Backend: to.GetName(), BackendType: to.GetType()}
	own := slot.CredentialPath
	if slot.Copies {
		callers.Path = "" // of the storage
	}
	b.CredentialPath = cmp.Or(own, callers.Path, to.GetCredentialPath())
	switch {
	case b.CredentialPath == "":
	case own == "" && callers.Path == "", slot.Copies:
		b.CredentialScope = configv1.CredentialScope_CREDENTIAL_SCOPE_NAMESPACE
	default:
		b.CredentialScope = callers.Scope
	}
	return b
}

// SlotKey names a slot of a pattern in the map of present bindings.
func SlotKey(pattern, purpose string) string { return pattern + "/" + purpose }

func clamp(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }

func wants(p selection.Pattern) Reserved {
	return Reserved{ReadRPS: uint64(p.ReadRPS), WriteRPS: uint64(p.WriteRPS), DataBytes: p.DataBytes}
}

// candidate is a backend that fits, with its score.
type candidate struct {
	Backend
	kept     bool
	confined int    // how narrowly its data is held: one machine 1, one process 2
	slow     uint64 // 1: its type answers slowly
	surplus  int    // how much more durable it is than asked for
	load     uint64 // the fullest of its capacities with this namespace on it, in thousandths
	shared   uint64 // how many namespaces are on it
}

// scores are compared in this order; the first that differs decides, and its text says why the other lost. Names break
// ties.
var scores = []struct {
	rule, won, lost string
	of              func(candidate) uint64
}{
	{"assign.kept", "the namespace is there already", "it fits too, but the namespace is elsewhere already", func(c candidate) uint64 {
		if c.kept {
			return 0
		}
		return 1
	}},
	{"assign.reach", "more proxies can use a backend of its type", "it fits too, but fewer proxies can use a backend of its type", func(c candidate) uint64 { return uint64(c.confined) }},
	{"assign.speed", "its type answers faster", "it fits too, but its type answers more slowly", func(c candidate) uint64 { return c.slow }},
	{"assign.durability", "it is as durable as asked for, and no more", "it fits too, but it is more durable than asked for", func(c candidate) uint64 { return uint64(c.surplus) }},
	{"assign.load", "it has the most room", "it fits too, but it has less room", func(c candidate) uint64 { return c.load }},
	{"assign.spread", "the fewest namespaces are on it", "it fits too, but more namespaces are on it", func(c candidate) uint64 { return c.shared }},
}

func choose(region string, p selection.Pattern, slot selection.Slot, pool []Backend, own map[string]Reserved, current Current) (Backend, *configv1.Decision, error) {
	was := current.Bindings[SlotKey(p.Name, slot.Purpose)]
	fits := make([]candidate, 0, len(pool))
	var refusals []*configv1.Refusal
	for _, b := range pool {
		held := b.Reserved.Add(own[b.GetName()])
		kept := b.GetName() == was
		why := refuse(region, p, slot, b.Backend, kept)
		if why == "" && !(kept && own[b.GetName()].Add(wants(p)).within(current.Held[was])) {
			why = refuseCapacity(p, b.Backend, held)
		}
		if why != "" {
			refusals = append(refusals, &configv1.Refusal{Name: b.GetName(), Reason: why})
			continue
		}
		c := score(p, b, held, was)
		if copies(p, slot) {
			c.surplus = 0 // how durable copies are does not matter
		}
		fits = append(fits, c)
	}
	subject := p.Name + "." + slot.Purpose
	if slot.Type != "" {
		subject += "-" + slot.Type
	}
	if len(fits) == 0 {
		return Backend{}, nil, noBackend(subject, refusals)
	}
	best := slices.MinFunc(fits, compare)
	rule, why := "assign.only", "it is the only one that fits"
	for _, c := range fits {
		if c.GetName() == best.GetName() {
			continue
		}
		r, won, lost := verdict(best, c)
		if rule == "assign.only" || order(r) > order(rule) {
			rule, why = r, won // the last criterion that was needed against any rival
		}
		refusals = append(refusals, &configv1.Refusal{Name: c.GetName(), Reason: lost})
	}
	if was != "" && was != best.GetName() {
		why += "; the namespace moves there and its data stays on " + was
	}
	slices.SortFunc(refusals, func(a, b *configv1.Refusal) int { return strings.Compare(a.GetName(), b.GetName()) })
	if more := len(refusals) - maxKept; more > 0 {
		refusals = append(refusals[:maxKept], &configv1.Refusal{Name: "others", Reason: fmt.Sprintf("%d more were not chosen", more)})
	}
	return best.Backend, &configv1.Decision{
		Stage: "assign", Subject: subject, Choice: best.GetName(), Rule: rule, Reason: why, Refusals: refusals,
	}, nil
}

func compare(a, b candidate) int {
	for _, s := range scores {
		if c := cmp.Compare(s.of(a), s.of(b)); c != 0 {
			return c
		}
	}
	return strings.Compare(a.GetName(), b.GetName())
}

func verdict(best, other candidate) (rule, won, lost string) {
	for _, s := range scores {
		if s.of(best) != s.of(other) {
			return s.rule, s.won, s.lost
		}
	}
	return "assign.name", "it is as good as others and its name is first", "it is as good, but its name comes later"
}

// order is the place of a rule among the scores; the tie by name is the last.
func order(rule string) int {
	for i, s := range scores {
		if s.rule == rule {
			return i
		}
	}
	return len(scores)
}

func score(p selection.Pattern, b Backend, held Reserved, was string) candidate {
	t, _ := catalog.Type(b.GetType())
	c := candidate{Backend: b, kept: b.GetName() == was, surplus: int(t.DurabilityWith(b.GetConfig()) - p.Durability), shared: held.Namespaces}
	switch {
	case t.SingleProcess:
		c.confined = 2
	case t.SingleMachine:
		c.confined = 1
	}
	if t.Slow {
		c.slow = 1
	}
	want := wants(p)
	for _, part := range capacities(b.Backend) {
		if part.capacity > 0 {
			c.load = max(c.load, permille(part.of(held.Add(want)), part.capacity))
		}
	}
	return c
}

// permille is part of whole in thousandths, without overflow; part is at most whole.
func permille(part, whole uint64) uint64 {
	if whole < 1000 {
		return part * 1000 / whole
	}
	return part / (whole / 1000)
}

// dimension is one thing that a backend has a bounded amount of.
type dimension struct {
	name     string
	capacity uint64 // 0: without bound
	of       func(Reserved) uint64
	say      func(uint64) string
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func capacities(b *configv1.Backend) [3]dimension {
	size, _ := admission.ParseSize(b.GetCapacity().GetDataSize()) // admitted with the backend
	return [3]dimension{
		{"read_rps", uint64(b.GetCapacity().GetReadRps()), func(r Reserved) uint64 { return r.ReadRPS }, number},
		{"write_rps", uint64(b.GetCapacity().GetWriteRps()), func(r Reserved) uint64 { return r.WriteRPS }, number},
		{"data_size", size, func(r Reserved) uint64 { return r.DataBytes }, FormatSize},
	}
}

// FormatSize writes bytes in the largest unit that divides them: 20GiB.
func FormatSize(n uint64) string {
	for _, u := range []struct {
		name  string
		bytes uint64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatUint(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatUint(n, 10) + "B"
}

// refuse says why a backend cannot take a slot; empty when it can. kept says that the namespace is on it now.
func refuse(region string, p selection.Pattern, slot selection.Slot, b *configv1.Backend, kept bool) string {
	t, known := catalog.Type(b.GetType())
	switch {
	case slot.Type != "" && b.GetType() != slot.Type:
		return fmt.Sprintf("it is a %s and the slot asks for %s", b.GetType(), slot.Type)
	case slot.Backend != "" && b.GetName() != slot.Backend:
		return fmt.Sprintf("the request prefers %s", slot.Backend)
	case !known || !t.Offered:
		return fmt.Sprintf("this build has no driver for %s", b.GetType())
	}
	if missing := missing(interfacesOf(p, slot), t.Interfaces); len(missing) > 0 {
		return fmt.Sprintf("a %s does not offer %s", t.Name, strings.Join(missing, ", "))
	}
	if copies(p, slot) {
		if t.DurabilityWith(b.GetConfig()) == configv1.Durability_DURABILITY_STRONG {
			return fmt.Sprintf("a %s keeps what it is given, and copies want a store that is fast", t.Name)
		}
	} else if why := refuseData(p, b, t); why != "" {
		return why
	}
	if have := b.GetLabels()["region"]; region != "" && have != region {
		return fmt.Sprintf("it is in region %q, not in %q", have, region)
	}
	for _, key := range sortedKeys(slot.Labels) {
		if have := b.GetLabels()[key]; have != slot.Labels[key] {
			return fmt.Sprintf("its label %s is %q, not %q", key, have, slot.Labels[key])
		}
	}
	if b.GetMaintenance() && !kept {
		return "it is in maintenance and takes no new namespaces"
	}
	return ""
}

// interfacesOf are what a slot's backend must have.
func interfacesOf(p selection.Pattern, slot selection.Slot) []string {
	if of := slotOf(p, slot); len(of.Interfaces) > 0 {
		return of.Interfaces
	}
	return p.Interfaces
}

// copies reports whether a slot's backend holds copies only.
func copies(p selection.Pattern, slot selection.Slot) bool { return slotOf(p, slot).Copies }

func slotOf(p selection.Pattern, slot selection.Slot) catalog.Slot {
	known, _ := catalog.PatternByType(p.Type)
	of, _ := known.SlotFor(slot.Purpose)
	return of
}

// refuseData says why the pattern's data cannot be kept on a backend; empty when it can.
func refuseData(p selection.Pattern, b *configv1.Backend, t catalog.BackendType) string {
	if has := t.DurabilityWith(b.GetConfig()); has < p.Durability {
		if has < t.Durability {
			return fmt.Sprintf("by its settings it gives durability %s at most, not %s", short(has), short(p.Durability))
		}
		return fmt.Sprintf("a %s gives durability %s at most, not %s", t.Name, short(has), short(p.Durability))
	}
	if t.Consistency < p.Consistency {
		return fmt.Sprintf("a %s gives consistency %s at most, not %s", t.Name, short(t.Consistency), short(p.Consistency))
	}
	if p.MaxValueBytes > t.MaxValueBytes {
		return fmt.Sprintf("a %s takes values of %s at most, not %s", t.Name, FormatSize(t.MaxValueBytes), FormatSize(p.MaxValueBytes))
	}
	return ""
}

func sortedKeys(labels map[string]string) []string {
	if len(labels) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(labels))
}

// refuseCapacity says what a backend has not enough of; empty when it has room.
func refuseCapacity(p selection.Pattern, b *configv1.Backend, held Reserved) string {
	want := wants(p)
	for _, d := range capacities(b) {
		need := d.of(want)
		if d.capacity == 0 || need == 0 {
			continue
		}
		if free := d.capacity - min(d.capacity, d.of(held)); need > free {
			return fmt.Sprintf("%s: %s of %s are left, and %s are asked for", d.name, d.say(free), d.say(d.capacity), d.say(need))
		}
	}
	return ""
}

func missing(want, have []string) []string {
	var out []string
	for _, name := range want {
		if !slices.Contains(have, name) {
			out = append(out, name)
		}
	}
	return out
}

func short(e protoreflect.Enum) string {
	return strictyaml.EnumName(e.Descriptor().Values().ByNumber(e.Number()))
}

const (
	maxReasons = 100 // in the text of a refusal
	maxKept    = 20  // backends not chosen that a decision names: it is stored with every namespace
)

// noBackend lists every backend with the reason why it was refused.
func noBackend(subject string, refusals []*configv1.Refusal) error {
	if len(refusals) == 0 {
		return fault.Newf(fault.FailedPrecondition, fault.NoBackend, "no backend for %s: none is registered", subject).With("slot", subject)
	}
	var reasons []string
	for i, r := range refusals {
		if i == maxReasons {
			reasons = append(reasons, fmt.Sprintf("and %d more", len(refusals)-i))
			break
		}
		reasons = append(reasons, r.GetName()+": "+r.GetReason())
	}
	return fault.Newf(fault.FailedPrecondition, fault.NoBackend, "no backend for %s: %s", subject, strings.Join(reasons, "; ")).With("slot", subject)
}
