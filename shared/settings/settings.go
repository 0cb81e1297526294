// Package settings loads the configuration of a program: defaults, then a strict YAML file, then environment variables,
// then checks. Whatever is wrong is reported at once, each with file, line and field, or with the variable's name.
package settings

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/shared/constraint"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Lookup finds an environment variable, as os.LookupEnv does.
type Lookup func(name string) (value string, ok bool)

// Override lets an environment variable replace a field. An empty variable counts as absent.
type Override struct {
	// Variable is the variable's name.
	Variable string
	// Field is the path of the field it replaces, so that errors name the variable.
	Field string
	// Set puts the value into the message that is being loaded.
	Set func(value string) error
}

// Port overrides the port of an address and keeps its host.
func Port(variable, field string, address *string) Override {
	return Override{Variable: variable, Field: field, Set: func(value string) error {
		if n, err := strconv.ParseUint(value, 10, 16); err != nil || strconv.FormatUint(n, 10) != value {
			return fmt.Errorf("%q: want a port from 0 to 65535", value)
		}
		host, _, err := splitAddress(*address)
		if err != nil {
			return fmt.Errorf("cannot give a port to %s: %w", field, err)
		}
		*address = joinAddress(host, value)
		return nil
	}}
}

// Text overrides a field of text.
func Text(variable, field string, into *string) Override {
	return Override{Variable: variable, Field: field, Set: func(value string) error {
		*into = value
		return nil
	}}
}

// Switch overrides a field that is on or off.
func Switch(variable, field string, into *bool) Override {
	return Override{Variable: variable, Field: field, Set: func(value string) (err error) {
		if *into, err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%q: want true or false", value)
		}
		return nil
	}}
}

// List overrides a list of text by a comma-separated variable.
func List(variable, field string, into *[]string) Override {
	return Override{Variable: variable, Field: field, Set: func(value string) error {
		*into = nil
		for one := range strings.SplitSeq(value, ",") {
			if one = strings.TrimSpace(one); one != "" {
				*into = append(*into, one)
			}
		}
		return nil
	}}
}

// Load reads the file at path into a message, which may hold defaults, applies overrides and checks the message's
// protovalidate rules. An empty path means that there is no file. An error is a strictyaml.Errors.
func Load(path string, into proto.Message, env Lookup, overrides ...Override) error {
	_, err := load(path, into, env, overrides)
	return err
}

// source knows where the values of a message came from.
type source struct {
	path      string
	doc       *strictyaml.Document // nil without a file
	variables map[string]string    // field: variable
}

func load(path string, into proto.Message, env Lookup, overrides []Override) (*source, error) {
	from := &source{path: path, variables: map[string]string{}}
	if path != "" {
		if err := from.read(into); err != nil {
			return nil, err
		}
	}
	var problems strictyaml.Errors
	for _, o := range overrides {
		value, ok := env(o.Variable)
		if !ok || value == "" {
			continue
		}
		from.variables[o.Field] = o.Variable
		if err := o.Set(value); err != nil {
			problems = append(problems, from.problem(o.Field, err.Error()))
		}
	}
	problems = append(problems, from.validate(into)...)
	if len(problems) > 0 {
		return nil, problems
	}
	return from, nil
}

// read decodes the file over the defaults: a field of the file replaces the default as a whole.
func (s *source) read(into proto.Message) error {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return strictyaml.Errors{{File: s.path, Text: readError(err)}}
	}
	docs, err := strictyaml.Parse(s.path, data)
	if err != nil {
		return err
	}
	if len(docs) > 1 {
		return strictyaml.Errors{{File: s.path, Line: docs[1].Line(), Text: "want one document, not several"}}
	}
	if len(docs) == 0 {
		return nil
	}
	s.doc = docs[0]
	written := into.ProtoReflect().New().Interface()
	if err := s.doc.Decode(written); err != nil {
		return err
	}
	overlay(into, written)
	return nil
}

func readError(err error) string {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return "cannot read it: " + path.Err.Error()
	}
	return "cannot read it: " + err.Error()
}

// problem places an error about a field: at its variable, or at its line.
func (s *source) problem(field, text string) *strictyaml.Error {
	if v, ok := s.variables[field]; ok {
		return &strictyaml.Error{File: "environment variable " + v, Text: text}
	}
	e := &strictyaml.Error{File: s.path, Field: field, Text: text}
	if s.doc != nil {
		e.Line, _ = s.doc.Position(field)
	}
	return e
}

func (s *source) validate(message proto.Message) strictyaml.Errors {
	var problems strictyaml.Errors
	for _, v := range constraint.Check(message) {
		problems = append(problems, s.problem(v.Field, v.Text))
	}
	return problems
}
