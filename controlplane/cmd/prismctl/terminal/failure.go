package terminal

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/prism-gateway/prism/shared/fault"
)

// failure is an error as scripts read it.
type failure struct {
	Error    string `json:"error"` // what a person would read
	ExitCode int    `json:"exit_code"`
	// What the answer said, when there was one.
	Code     string            `json:"code,omitempty"`
	Reason   fault.Reason      `json:"reason,omitempty"`
	Outcome  fault.Outcome     `json:"outcome,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Retry    float64           `json:"retry_after_seconds,omitempty"`
}

// Fail tells the error that a command ends with: a text for people, one line of JSON where results are JSON too. help is the
// line that says where to read on, empty for none.
func (t *Terminal) Fail(err error, exitCode int, help string) {
	if t.Format == JSON {
		out := failure{Error: Explain(err), ExitCode: exitCode}
		if f, ok := errors.AsType[*fault.Fault](err); ok {
			out.Code, out.Reason, out.Outcome, out.Metadata, out.Retry = f.Code.String(), f.Reason, f.Outcome, f.Metadata, f.RetryAfter.Seconds()
		}
		if line, err := json.Marshal(out); err == nil { // strings and numbers always are JSON
			fmt.Fprintf(t.Err, "%s\n", line)
			return
		}
	}
	fmt.Fprintf(t.Err, "prismctl: %s\n", Explain(err))
	if help != "" {
		fmt.Fprintln(t.Err, help)
	}
}
