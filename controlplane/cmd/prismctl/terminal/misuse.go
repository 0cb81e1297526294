package terminal

import (
	"fmt"
	"regexp"
)

// Misuse is a mistake on the command line itself, found before anything was asked of anybody.
type Misuse struct{ Err error }

// Misusef describes a mistake on the command line.
func Misusef(format string, args ...any) Misuse { return Misuse{fmt.Errorf(format, args...)} }

// Error says what is wrong.
func (m Misuse) Error() string { return m.Err.Error() }

// Unwrap returns the mistake.
func (m Misuse) Unwrap() error { return m.Err }

var version = regexp.MustCompile(`^[0-9a-f]{64}$`)

// CheckVersion checks the value of a flag --version: tables show only the beginning of a version, which would never be
// the one that somebody read. Empty is no condition.
func CheckVersion(s, command string) error {
	if s == "" || version.MatchString(s) {
		return nil
	}
	return Misusef("--version %q: want the whole version, 64 hexadecimal digits, as %s shows it", s, command)
}
