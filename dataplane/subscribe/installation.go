package subscribe

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/prism-gateway/prism/shared/telemetry"
)

// installationHeader names the installation in the header or trailer of a replica's streams, and in that of a report.
const installationHeader = "prism-installation"

func installation(md metadata.MD) string {
	if values := md.Get(installationHeader); len(values) > 0 {
		return values[0]
	}
	return ""
}

// checkInstallation refuses a replica of another installation than the one that the state is of: a wrong address, or a
// store that somebody made anew, must not take away what is served. Without a state any will do.
func (l *loop) checkInstallation(e event) bool {
	endpoint := e.session.endpoint
	if l.installation == "" {
		if e.response == nil { // a replica that refuses is none that is joined
			return true
		}
		l.installation = e.installation
		l.publish()
	}
	if e.installation == l.installation {
		if l.foreign[endpoint] != "" {
			delete(l.foreign, endpoint)
			l.tellForeign()
		}
		return true
	}
	if l.foreign[endpoint] != e.installation {
		l.log.Error("a control plane of another installation is refused; to join it, stop this proxy and clear its state directory",
			telemetry.KeyAddress, endpoint, "theirs", e.installation, "installation", l.installation, "state_dir", l.c.cfg.StateDir)
		l.foreign[endpoint] = e.installation
		l.tellForeign()
	}
	e.session.cancel() // what was asked for on it no longer holds
	if l.session == e.session {
		l.closed()
	}
	return false
}

// tellForeign says which endpoints are refused.
func (l *loop) tellForeign() {
	l.c.metrics.foreign.Set(float64(len(l.foreign)))
	if l.c.cfg.Foreign == nil {
		return
	}
	clear := "restart it"
	if l.c.cfg.StateDir != "" {
		clear = "stop it and clear its state directory " + l.c.cfg.StateDir
	}
	var lines []string
	for _, endpoint := range slices.Sorted(maps.Keys(l.foreign)) {
		lines = append(lines, fmt.Sprintf("control plane at %s is installation %s, this proxy serves %s: it is refused; to join %s, %s",
			endpoint, l.foreign[endpoint], l.installation, l.foreign[endpoint], clear))
	}
	l.c.cfg.Foreign(strings.Join(lines, "\n"))
}
