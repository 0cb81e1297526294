package terminal

import (
	"errors"
	"time"

	"github.com/spf13/pflag"

	"github.com/prism-gateway/prism/shared/strictyaml"
)

// DurationVar defines a flag of a duration, written as in the files: 30d is one too.
func DurationVar(flags *pflag.FlagSet, into *time.Duration, name string, value time.Duration, usage string) {
	*into = value
	flags.Var((*duration)(into), name, usage)
}

// duration is the value of such a flag.
type duration time.Duration

// String writes the duration; none is no default to tell of.
func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return strictyaml.FormatDuration(time.Duration(*d))
}

// Set takes a duration.
func (d *duration) Set(s string) error {
	v, ok := strictyaml.ParseDuration(s)
	if !ok {
		return errors.New("want a number and a unit, such as 500ms, 10s, 24h or 30d")
	}
	*d = duration(v)
	return nil
}

// Type is the word for the value in the help.
func (*duration) Type() string { return "duration" }
