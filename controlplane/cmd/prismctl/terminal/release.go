package terminal

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/release"
	adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Release are the flags that say how a change goes to the fleet.
type Release struct {
	AtOnce        bool
	ConfirmWithin time.Duration
	AllowShrink   bool
}

// Register adds the flags to a command that changes something.
func (r *Release) Register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.AtOnce, "at-once", false, "give it to every owner at once instead of in waves; say why with --message")
	DurationVar(cmd.Flags(), &r.ConfirmWithin, "confirm-within", 0, "take it back unless it is confirmed within this time (prismctl release confirm)")
	cmd.Flags().BoolVar(&r.AllowShrink, "allow-shrink", false, "also when a large share of the namespaces or of what they are bound to goes by it")
}

// Check finds mistakes in the flags together with the note.
func (r *Release) Check(cmd *cobra.Command, note Note) error {
	if r.AtOnce && note.Message == "" {
		return Misusef("--at-once passes the waves by: say why with --message")
	}
	if given := cmd.Flags().Changed("confirm-within"); given && r.ConfirmWithin < time.Second {
		return Misusef("--confirm-within %v: want 1s or more", r.ConfirmWithin)
	}
	return nil
}

// Proto returns the options as they are sent; nil when none was given.
func (r *Release) Proto() *controlv1.ReleaseOptions {
	if *r == (Release{}) {
		return nil
	}
	options := &controlv1.ReleaseOptions{AtOnce: r.AtOnce, AllowShrink: r.AllowShrink}
	if r.ConfirmWithin > 0 {
		options.ConfirmWithin = durationpb.New(r.ConfirmWithin)
	}
	return options
}

// Tell says what there is to do about a change that goes to its owners in a release; number is 0 for one that they all
// have at once.
func (r *Release) Tell(w io.Writer, number uint64) {
	if number == 0 {
		return
	}
	if r.ConfirmWithin > 0 {
		fmt.Fprintf(w, "it is taken back after %s unless it is confirmed: prismctl release confirm %d\n", strictyaml.FormatDuration(r.ConfirmWithin), number)
	}
	if !r.AtOnce {
		fmt.Fprintf(w, "it goes to its owners in release %d: prismctl release watch %d\n", number, number)
	}
}

// State is running, paused, done, rolled back, aborted or superseded.
func State(s configv1.ReleaseState) string { return word(s.String(), "RELEASE_STATE_") }

// Class is additive, scoped, shared or rollback.
func Class(c configv1.ReleaseClass) string { return word(c.String(), "RELEASE_CLASS_") }

func word(value, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(value, prefix)), "_", " ")
}

// Policy says in one line what a release goes by.
func Policy(p *configv1.ReleasePolicy) string {
	if p == nil || p.GetAtOnce() {
		return "at once"
	}
	return fmt.Sprintf("in waves, first to one owner each of %d %% of the partitions; soak %v, silence %v; from %d calls on at most %g points more failures and %g times the latency",
		p.GetFirstPercent(), p.GetSoak().AsDuration(), p.GetSilence().AsDuration(), p.GetMinCalls(), p.GetMaxFailedPoints(), p.GetMaxLatencyFactor())
}

// Wave is the wave that a release has reached.
func Wave(r *adminv1.Release) string {
	name := release.WaveName(int(r.GetWave()))
	if r.GetWave() == 0 {
		return name
	}
	return fmt.Sprintf("%d (%s)", r.GetWave(), name)
}

// Now says what a release waits for, or why it ended.
func Now(r *adminv1.Release) string {
	if r.GetWaitsFor() != "" {
		return Waits(r.GetWaitsFor())
	}
	return r.GetReason()
}

// Waits makes a clause of what a release waits for: a person or an event is waited for, a reason is one by itself.
func Waits(what string) string {
	for _, noun := range []string{"somebody ", "its ", "the "} {
		if strings.HasPrefix(what, noun) {
			return "waits for " + what
		}
	}
	return what
}

func ended(r *adminv1.Release) bool {
	return r.GetState() != configv1.ReleaseState_RELEASE_STATE_RUNNING && r.GetState() != configv1.ReleaseState_RELEASE_STATE_PAUSED
}

// ReleaseLine says in one line how far a release is.
func ReleaseLine(r *adminv1.Release) string {
	parts := []string{State(r.GetState())}
	if !ended(r) && r.GetWave() > 0 {
		parts = append(parts, "wave "+Wave(r))
		for _, v := range r.GetWaves() {
			if v.GetWave() == r.GetWave() {
				parts = append(parts, fmt.Sprintf("served by %d of %d cells", v.GetServing(), v.GetCells()))
			}
		}
	}
	if n := len(r.GetTakenBack()); n > 0 {
		parts = append(parts, fmt.Sprintf("%d taken back", n))
	}
	if text := Now(r); text != "" {
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}
