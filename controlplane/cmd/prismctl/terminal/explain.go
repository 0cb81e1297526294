package terminal

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Explain turns an error into what the person reads, without the name of the program: one sentence, then one line for
// each thing that is wrong.
func Explain(err error) string {
	if problems, ok := errors.AsType[admission.Problems](err); ok {
		return list(len(problems), problems.Error())
	}
	if problems, ok := errors.AsType[strictyaml.Errors](err); ok {
		return list(len(problems), problems.Error())
	}
	f, ok := errors.AsType[*fault.Fault](err)
	if !ok {
		return err.Error()
	}
	var b strings.Builder
	b.WriteString(err.Error()) // the public text, with what was being done
	for _, v := range f.Violations {
		if len(f.Violations) == 1 && strings.Contains(err.Error(), v.Text) {
			break // the public text has said it
		}
		b.WriteString("\n  ")
		if v.Field != "" {
			b.WriteString(v.Field + ": ")
		}
		b.WriteString(v.Text)
	}
	if name := f.Metadata["interface"]; f.Reason == fault.InterfaceMissing && name != "" {
		fmt.Fprintf(&b, "\n  ask for it in the namespace's request: needs: {interfaces: [%s]}", name)
	}
	if f.Metadata["guard"] == "allow_shrink" {
		b.WriteString("\n  if that is meant, say so with --allow-shrink")
	}
	if f.Reason == fault.NotLoaded {
		b.WriteString("\n  what is in the way stands on the /readyz of its http_listen, by default http://127.0.0.1:8095/readyz on its machine")
	}
	if f.Reason == fault.Reserved {
		b.WriteString("\n  who has the token gives it to namespace apply with --reservation-token or in PRISM_RESERVATION_TOKEN")
	}
	if f.RetryAfter > 0 && f.Outcome != fault.OutcomeUnknown && !strings.Contains(err.Error(), "try again") {
		fmt.Fprintf(&b, "\n  try again in %v", f.RetryAfter.Round(time.Millisecond))
	}
	if f.Outcome == fault.OutcomeUnknown {
		b.WriteString("\n  whether it was done is not known: look before you repeat it")
	}
	if id := f.Metadata[faultgrpc.RequestIDKey]; id != "" && (f.Code == fault.Internal || f.Code == fault.Unknown || f.Code == fault.DataLoss) {
		b.WriteString(" (request id " + id + ")")
	}
	return b.String()
}

// list puts several lines under a heading; a single one speaks for itself.
func list(n int, lines string) string {
	if n == 1 {
		return lines
	}
	return fmt.Sprintf("%d problems\n  %s", n, strings.ReplaceAll(lines, "\n", "\n  "))
}
