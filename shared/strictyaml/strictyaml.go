// Package strictyaml reads YAML into protobuf messages and takes nothing that a person cannot have meant: no unknown or
// repeated key, no anchor, no empty value, no value of another type.
//
// Durations are written as 500ms, 24h or 30d, enum values by their short name (strong) or their full one, fields by
// their proto or JSON name; what protojson writes is read as well. Every problem of a document is reported at once, with
// file, line and field.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
)

const (
	maxBytes  = 16 << 20
	maxDepth  = 64
	maxErrors = 50
)

// Error is one problem of a document.
type Error struct {
	File   string
	Line   int    // from 1; 0 when the problem has no place
	Column int    // from 1, in characters; 0 when only the line is known
	Field  string // path such as needs.ttl or patterns[1].slots[0].name; empty for the whole
	Text   string
}

// Error returns file:line: field: text.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Text)
	return b.String()
}

// Errors are all problems of a document, in its order. It is never empty.
type Errors []*Error

// Error returns one line for each problem.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the problems.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, one := range e {
		all[i] = one
	}
	return all
}

// Document is one document of a file.
type Document struct {
	file   string
	root   *yaml.Node
	places map[string]place
}

// place is where a field stands.
type place struct{ line, column int }

func placeOf(n *yaml.Node) place { return place{n.Line, n.Column} }

// Parse splits a file into its documents; empty ones are left out. The name stands in errors. An error is an Errors.
func Parse(name string, data []byte) ([]*Document, error) {
	fail := func(line int, text string) ([]*Document, error) {
		return nil, Errors{{File: name, Line: line, Text: text}}
	}
	if len(data) > maxBytes {
		return fail(0, fmt.Sprintf("the file has %d bytes, more than %d", len(data), maxBytes))
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var docs []*Document
	for {
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return fail(syntaxError(err))
		}
		if len(node.Content) == 0 || isNull(node.Content[0]) {
			continue
		}
		root := node.Content[0]
		if problems := check(name, root); len(problems) > 0 {
			return nil, problems
		}
		if root.Kind != yaml.MappingNode {
			return fail(root.Line, "want a mapping of field names to values, not "+kindOf(root))
		}
		docs = append(docs, &Document{file: name, root: root})
	}
}

// Decode fills a message from the document. An error is an Errors.
func (d *Document) Decode(into proto.Message) error {
	dec := &decoder{file: d.file, places: map[string]place{"": placeOf(d.root)}}
	dec.message("", d.root, into.ProtoReflect())
	d.places = dec.places
	if len(dec.problems) > 0 {
		return dec.problems
	}
	return nil
}

// Position returns the line of a field after Decode. A field that is not in the document has the line of the nearest one
// that holds it.
func (d *Document) Position(field string) (line int, ok bool) {
	line, _, ok = d.Place(field)
	return line, ok
}

// Place is Position with the column.
func (d *Document) Place(field string) (line, column int, ok bool) {
	for {
		if at, ok := d.places[field]; ok {
			return at.line, at.column, true
		}
		if field == "" {
			return 0, 0, false
		}
		field = parent(field)
	}
}

// Line returns the line on which the document begins.
func (d *Document) Line() int { return d.root.Line }

// parent cuts the last step off a path: a.b[1] -> a.b -> a -> "".
func parent(field string) string {
	if strings.HasSuffix(field, "]") {
		if i := strings.LastIndexByte(field, '['); i >= 0 {
			return field[:i]
		}
	}
	i := strings.LastIndexByte(field, '.')
	return field[:max(i, 0)]
}

// check refuses what no message can mean: repeated keys, anchors, tags, keys that are no text, too much depth.
func check(name string, root *yaml.Node) Errors {
	var problems Errors
	report := func(n *yaml.Node, format string, args ...any) {
		if len(problems) < maxErrors {
			problems = append(problems, &Error{File: name, Line: n.Line, Column: n.Column, Text: fmt.Sprintf(format, args...)})
		}
	}
	anchor, alias := true, true // one of each is told: a file that has one has many
	var walk func(n *yaml.Node, depth int)
	walk = func(n *yaml.Node, depth int) {
		switch {
		case depth > maxDepth:
			report(n, "nested more than %d levels deep", maxDepth)
			return
		case n.Kind == yaml.AliasNode && !alias, n.Anchor != "" && !anchor:
		case n.Kind == yaml.AliasNode:
			alias = false
			report(n, "alias *%s: write the value out; anchors are not supported", n.Value)
			return
		case n.Anchor != "":
			anchor = false
			report(n, "anchor &%s: write the value out where it is needed; anchors are not supported", n.Anchor)
		case n.Style&yaml.TaggedStyle != 0:
			report(n, "tag %s: tags are not supported", n.Tag)
		}
		if n.Kind == yaml.MappingNode {
			first := map[string]int{}
			for i := 0; i < len(n.Content); i += 2 {
				key := n.Content[i]
				if key.Kind != yaml.ScalarNode {
					report(key, "a key must be text, not %s", kindOf(key))
					continue
				}
				if line, seen := first[key.Value]; seen {
					report(key, "key %q is there twice, first on line %d", key.Value, line)
				}
				first[key.Value] = key.Line
			}
		}
		for _, child := range n.Content {
			walk(child, depth+1)
		}
	}
	walk(root, 0)
	return problems
}

var lineOfError = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func syntaxError(err error) (line int, text string) {
	text, _, _ = strings.Cut(err.Error(), "\n")
	if m := lineOfError.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1]) // no number: no line
		text = text[len(m[0]):]
	}
	return line, "this is not YAML: " + text
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// kindOf names what a node is, for people.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.Tag {
		case "!!null":
			return "nothing"
		case "!!str":
			return "text"
		case "!!bool":
			return "true or false"
		}
		return "the number " + n.Value
	}
	return "this"
}
