// Package gate judges a wave of a release by what is known of its cells.
//
// A cell is a partition on a proxy. The cells that a release has reached are held against what they ought to serve and
// against the cells of the same partitions that it has not reached, which take the same calls at the same time.
package gate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prism-gateway/prism/controlplane/release"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/ident"
)

// Roots are what a cell has of its partition, and of the shared collection for it.
type Roots struct {
	Partition, Shared ident.Hash
}

// Unready is a namespace that cannot serve on a cell.
type Unready struct {
	Namespace, Reason string
	// Since is when it was first seen so.
	Since time.Time
	// Before is whether it was so before the release reached the cell.
	Before bool
}

// Cell is one partition on one proxy, and what is known of it.
type Cell struct {
	Partition ident.Partition
	Proxy     string
	Rank      release.Rank
	// Wave is the wave that brings the release to the cell, and Reached whether it has.
	Wave    int
	Reached bool
	// Wants are the states in which the cell has what it is to have of the release, newest first: several, because
	// changes outside the release go on.
	Wants []Roots
	// Since is from when the cell is expected to have it.
	Since time.Time
	// Gone says that the proxy has left the fleet, which the placement is about to notice. That is not the release's
	// doing.
	Gone bool

	// Build is the proxy's build; empty while nothing was heard of the cell.
	Build string
	// Seen is when the proxy was last heard of; zero when never.
	Seen time.Time
	// Sent, Accepted and Serving are how far the cell is, and Snapshot is the newest snapshot of which, and of all
	// before it, nothing was withheld from what it serves.
	Sent, Accepted, Serving Roots
	Snapshot                uint64
	// Rejections are those that concern the release.
	Rejections []*configv1.Rejection
	Unready    []Unready
	// Then are the cell's calls when the wave began, nil when they are not known, and Now the newest.
	Then, Now *Traffic
}

// Has reports whether a state is one that the cell is to have.
func (c *Cell) Has(r Roots) bool { return !r.Partition.IsZero() && slices.Contains(c.Wants, r) }

// Serves reports whether the cell serves what it is to have of the release that bears the number of a snapshot.
func (c *Cell) Serves(snapshot uint64) bool { return c.Snapshot >= snapshot || c.Has(c.Serving) }

// Traffic counts a cell's calls since its proxy started.
type Traffic struct {
	Calls, Failed uint64
	// Took is the time that all of them took together.
	Took time.Duration
	// Since is the proxy's start. Counters of another start began anew.
	Since time.Time
}

// since returns what was counted after then. Without a then nothing is known to be.
func (t *Traffic) since(then *Traffic) Traffic {
	switch {
	case t == nil || then == nil:
		return Traffic{}
	case !t.Since.Equal(then.Since):
		return *t // the proxy has started since
	case t.Calls < then.Calls || t.Failed < then.Failed || t.Took < then.Took:
		return Traffic{}
	}
	return Traffic{Calls: t.Calls - then.Calls, Failed: t.Failed - then.Failed, Took: t.Took - then.Took}
}

func (t *Traffic) add(u Traffic) {
	t.Calls, t.Failed, t.Took = t.Calls+u.Calls, t.Failed+u.Failed, t.Took+u.Took
}

// Input is what a wave is judged by.
type Input struct {
	// Snapshot names the release, Wave is the one that it has reached, and Policy, complete, is what it goes by.
	Snapshot uint64
	Wave     int
	Policy   *configv1.ReleasePolicy
	// Cells are those of the partitions that the release concerns, reached or not.
	Cells []Cell
	// Lost are the proxies that the release had reached and that left the fleet since without draining.
	Lost []string
	// Held is since when every cell reached has served it; zero while that was not seen yet.
	Held time.Time
	// Silence is how long a proxy may not be heard of; the policy's counts when it is longer.
	Silence time.Duration
	Now     time.Time
}

// Outcome is what is to become of a wave.
type Outcome int

// The outcomes.
const (
	Wait Outcome = iota
	Pass
	// Part is that some namespaces cannot serve, and that nothing else is wrong.
	Part
	Fail
)

// String returns the outcome in lower case.
func (o Outcome) String() string { return [...]string{"wait", "pass", "part", "fail"}[o] }

// Outage is a namespace that cannot serve where a release has come to it, and could before.
type Outage struct {
	Namespace, Proxy, Build, Reason string
	// Over is whether there is no patience with it any more.
	Over bool
}

// Text says what is the matter, for people.
func (o Outage) Text() string { return "not ready at " + o.Proxy + ": " + o.Reason }

// Verdict is the judgement of a wave.
type Verdict struct {
	Outcome Outcome
	// Reason is why it waits or has failed, for people; empty for Pass.
	Reason string
	// Unready are, for Part, the namespaces that cannot serve, each once, by name.
	Unready []Outage
	// Until is when a Wait is to be judged again if nothing changes before.
	Until time.Time
	// Serving is whether every cell that the release has reached serves it.
	Serving bool
}

// tooManyLost is how many proxies may die no more while a release is on its way: one dies by chance, several do not.
const tooManyLost = 2

// Judge judges a wave. It is to be called again when something changed, and at Until.
func Judge(in Input) Verdict {
	j := judgement{in: in, silence: max(in.Silence, in.Policy.GetSilence().AsDuration()), patience: in.Policy.GetSilence().AsDuration()}
	here, gone := 0, 0 // cells of the wave
	alive := 0         // cells that were reached
	for i := range in.Cells {
		c := &in.Cells[i]
		if c.Wave == in.Wave {
			here++
			if c.Gone {
				gone++
			}
		}
		if c.Reached && !c.Gone {
			alive++
			j.cell(c)
		}
	}
	over := in.Held.Add(in.Policy.GetSoak().AsDuration())
	held := len(j.late) == 0 && !in.Held.IsZero() && !in.Now.Before(over)
	traffic := compare(in.Cells, in.Policy, held)
	serving := j.behind == 0
	switch {
	case len(in.Lost) >= tooManyLost, len(in.Lost) > 0 && alive == 0:
		return Verdict{Outcome: Fail, Reason: fmt.Sprintf("died after it had reached them: %s", some(in.Lost)), Serving: serving}
	case len(j.failed) > 0:
		return Verdict{Outcome: Fail, Reason: first(j.failed), Serving: serving}
	case j.over(traffic != ""):
		return Verdict{Outcome: Part, Reason: strings.TrimSuffix(j.outages()+"; "+traffic, "; "), Unready: j.unready, Serving: serving}
	case traffic != "":
		return Verdict{Outcome: Fail, Reason: traffic, Serving: serving}
	case len(j.late) > 0:
		return Verdict{Outcome: Wait, Reason: first(j.late), Until: j.until, Serving: serving}
	case here > 0 && gone == here:
		return Verdict{Outcome: Wait, Reason: "every proxy of the wave has left the fleet", Until: in.Now.Add(j.silence)}
	case held:
		return Verdict{Outcome: Pass, Serving: true}
	case in.Held.IsZero():
		over = in.Now.Add(in.Policy.GetSoak().AsDuration())
	}
	j.again(over)
	return Verdict{Outcome: Wait, Reason: Held(over.Sub(in.Now)), Until: j.until, Serving: true}
}

// judgement collects what is said against single cells.
type judgement struct {
	in                Input
	silence, patience time.Duration
	failed, late      []string       // failed for good, and not yet as they ought to be
	unready           []Outage       // by name
	others            map[place]bool // what cannot serve where the release has not come to; nil until somebody asks
	behind            int            // cells that do not serve it
	until             time.Time
}

// cell judges a cell that the release has reached, by itself.
func (j *judgement) cell(c *Cell) {
	at := func() string { return c.Proxy + " in " + c.Partition.String() }
	for _, r := range c.Rejections {
		j.failed = append(j.failed, fmt.Sprintf("%s refused %s", at(), Refusal(r, c.Build)))
	}
	if c.Rank == release.Other {
		return // it loads the partition, or is about to leave it: placement waits for it
	}
	// Whoever reports that it serves it was heard of, whatever the clocks say.
	heard := c.Seen
	if heard.Before(c.Since) {
		heard = c.Since
	}
	switch {
	case j.in.Now.Sub(heard) >= j.silence:
		j.failed = append(j.failed, fmt.Sprintf("%s has not been heard of for %s", at(), seconds(j.in.Now.Sub(heard))))
	default:
		j.again(heard.Add(j.silence))
	}
	if !c.Serves(j.in.Snapshot) {
		j.behind++
		j.expect(c.Since, fmt.Sprintf("%s %s", at(), behind(c)))
	}
	for _, u := range c.Unready {
		if u.Before || j.elsewhere(c.Partition, u.Namespace) {
			continue
		}
		since := u.Since
		if since.Before(c.Since) {
			since = c.Since
		}
		o := Outage{Namespace: u.Namespace, Proxy: c.Proxy, Build: c.Build, Reason: u.Reason, Over: true}
		if due := since.Add(j.patience); j.in.Now.Before(due) {
			o.Over = false
			j.late = append(j.late, fmt.Sprintf("%s cannot serve namespace %s: %s", at(), u.Namespace, u.Reason))
			j.again(due)
		}
		j.out(o)
	}
}

// out notes an outage. Of those of one namespace the first with which there is no patience counts.
func (j *judgement) out(o Outage) {
	i, known := slices.BinarySearchFunc(j.unready, o.Namespace, func(o Outage, name string) int { return strings.Compare(o.Namespace, name) })
	switch {
	case !known:
		j.unready = slices.Insert(j.unready, i, o)
	case o.Over && !j.unready[i].Over:
		j.unready[i] = o
	}
}

// over reports whether there is no patience with a namespace any more. While calls fail there is none with any.
func (j *judgement) over(failing bool) bool {
	over := false
	for i := range j.unready {
		j.unready[i].Over = j.unready[i].Over || failing
		over = over || j.unready[i].Over
	}
	return over
}

// outages tells with which namespaces there is no patience any more.
func (j *judgement) outages() string {
	var all []string
	for _, o := range j.unready {
		if o.Over {
			all = append(all, fmt.Sprintf("namespace %s %s", o.Namespace, o.Text()))
		}
	}
	return first(all)
}

// expect allows something for as long as the policy has patience.
func (j *judgement) expect(since time.Time, what string) {
	if due := since.Add(j.patience); j.in.Now.Before(due) {
		j.late = append(j.late, what)
		j.again(due)
		return
	}
	j.failed = append(j.failed, fmt.Sprintf("%s (given %s)", what, seconds(j.patience)))
}

func (j *judgement) again(at time.Time) {
	if j.until.IsZero() || at.Before(j.until) {
		j.until = at
	}
}

// behind says how far a cell is that does not serve what it is to have.
func behind(c *Cell) string {
	switch {
	case c.Has(c.Accepted):
		return "has accepted it and does not report that it serves it"
	case c.Has(c.Sent):
		return "was sent it and has not acknowledged it"
	case c.Seen.IsZero():
		return "has not been heard of"
	}
	return "waits for it to be sent"
}

// place is a namespace in its partition.
type place struct {
	partition ident.Partition
	namespace string
}

// elsewhere reports whether a namespace cannot serve on a cell that the release has not reached either.
func (j *judgement) elsewhere(p ident.Partition, namespace string) bool {
	if j.others == nil {
		j.others = map[place]bool{}
		for i := range j.in.Cells {
			c := &j.in.Cells[i]
			if c.Reached {
				continue
			}
			for _, u := range c.Unready {
				j.others[place{c.Partition, u.Namespace}] = true
			}
		}
	}
	return j.others[place{p, namespace}]
}

// Refusal says what a proxy of a build refused and why.
func Refusal(r *configv1.Rejection, build string) string {
	text := r.GetResource()
	if r.GetField() != "" {
		text += ": " + r.GetField()
	}
	text += ": " + r.GetReason()
	if build != "" {
		text += " (build " + build + ")"
	}
	return text
}

// some tells the first few of several and how many more there are.
func some(all []string) string {
	const most = 5
	text := strings.Join(all[:min(len(all), most)], ", ")
	if more := len(all) - most; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}

// first tells one of several and how many more there are.
func first(all []string) string {
	if more := len(all) - 1; more > 0 {
		return fmt.Sprintf("%s (and %d more)", all[0], more)
	}
	return all[0]
}

func seconds(d time.Duration) string { return fmt.Sprintf("%d s", int(d.Seconds())) }
