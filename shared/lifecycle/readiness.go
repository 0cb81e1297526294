package lifecycle

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Condition is one thing that must hold before a program takes work.
type Condition struct {
	Name   string    `json:"name"`
	Ready  bool      `json:"ready"`
	Reason string    `json:"reason,omitempty"` // why not, for people; when ready, what they ought to know all the same
	Since  time.Time `json:"since"`            // when Ready last changed
}

// State is the readiness of a program at one moment.
type State struct {
	Ready      bool        `json:"ready"`
	Conditions []Condition `json:"conditions"` // by name
	Following  *Following  `json:"following,omitempty"`
}

// Following is how new that is which others decide and a program goes by. It does not make a program unready: what is old
// is served on.
type Following struct {
	Who      string    `json:"who,omitempty"`        // who is followed, while anybody is
	Since    time.Time `json:"since,omitzero"`       // since when without a break, while anybody is
	Heard    time.Time `json:"heard,omitzero"`       // when the last word came; absent where none ever did
	Age      float64   `json:"age_seconds,omitzero"` // since then
	Snapshot uint64    `json:"snapshot"`             // the newest version that is here
	Revision int64     `json:"revision"`             // etcd's, of the newest that is here
}

// Reasons returns why the program is not ready, as "name: reason"; none when it is.
func (s State) Reasons() []string {
	var reasons []string
	for _, c := range s.Conditions {
		if !c.Ready {
			reasons = append(reasons, c.Name+": "+c.Reason)
		}
	}
	return reasons
}

// Readiness knows the conditions of a program. It is safe for concurrent use.
type Readiness struct {
	// mu guards what follows.
	mu         sync.Mutex
	conditions map[string]Condition
	changed    chan struct{} // closed at the next change
	following  func() Following
}

// NewReadiness names conditions that do not hold yet. Without conditions the program is ready.
func NewReadiness(names ...string) *Readiness {
	r := &Readiness{conditions: map[string]Condition{}, changed: make(chan struct{})}
	for _, name := range names {
		r.conditions[name] = Condition{Name: name, Reason: "starting", Since: time.Now()}
	}
	return r
}

// Ready says that a condition holds.
func (r *Readiness) Ready(name string) { r.set(Condition{Name: name, Ready: true}) }

// Note says that a condition holds, and what people ought to know all the same.
func (r *Readiness) Note(name, text string) { r.set(Condition{Name: name, Ready: true, Reason: text}) }

// NotReady says that a condition does not hold, and why: for people, without secrets. An unknown name is a new
// condition.
func (r *Readiness) NotReady(name, reason string) { r.set(Condition{Name: name, Reason: reason}) }

func (r *Readiness) set(next Condition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.conditions[next.Name]
	if known && last.Ready == next.Ready && last.Reason == next.Reason {
		return
	}
	next.Since = last.Since
	if !known || last.Ready != next.Ready {
		next.Since = time.Now()
	}
	r.conditions[next.Name] = next
	close(r.changed)
	r.changed = make(chan struct{})
}

// Follow has ServeReady tell how new what the program goes by is.
func (r *Readiness) Follow(now func() Following) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.following = now
}

// State returns the conditions and a channel that is closed when they are no longer so.
func (r *Readiness) State() (State, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := State{Ready: true, Conditions: make([]Condition, 0, len(r.conditions))}
	for _, c := range r.conditions {
		s.Ready = s.Ready && c.Ready
		s.Conditions = append(s.Conditions, c)
	}
	slices.SortFunc(s.Conditions, func(a, b Condition) int { return strings.Compare(a.Name, b.Name) })
	return s, r.changed
}

// ServeReady answers /readyz: 200 when every condition holds and 503 otherwise, with the conditions and what Follow was
// given as JSON.
func (r *Readiness) ServeReady(w http.ResponseWriter, _ *http.Request) {
	s, _ := r.State()
	r.mu.Lock()
	following := r.following
	r.mu.Unlock()
	if following != nil {
		f := following()
		if !f.Heard.IsZero() {
			f.Age = time.Since(f.Heard).Seconds()
		}
		s.Following = &f
	}
	code := http.StatusOK
	if !s.Ready {
		code = http.StatusServiceUnavailable
	}
	writeJSON(w, code, s)
}

// ServeHealth answers /healthz: 200 for as long as the process answers at all. What it waits for does not matter here,
// so that nothing restarts a program that waits for another.
func (*Readiness) ServeHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Healthy bool `json:"healthy"`
	}{true})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the reader went away
}
