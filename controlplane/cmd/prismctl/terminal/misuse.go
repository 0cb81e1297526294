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

// NotLive is the error of a command that did what it was asked, and found or left something that not every owner serves.
type NotLive struct{ Err error }

// NotLivef describes what is not live.
func NotLivef(format string, args ...any) NotLive { return NotLive{fmt.Errorf(format, args...)} }

// Error says what is not live, and why.
func (n NotLive) Error() string { return n.Err.Error() }

// Unwrap returns the reason.
func (n NotLive) Unwrap() error { return n.Err }

var version = regexp.MustCompile(`^[0-9a-f]{64}$`)

// CheckVersion checks the value of a flag --version: tables show only the beginning of a version, which would never be
// the one that somebody read. Empty is no condition.
func CheckVersion(s, command string) error {
	if s == "" || version.MatchString(s) {
		return nil
	}
	return Misusef("--version %q: want the whole version, 64 hexadecimal digits, as %s shows it", s, command)
}
