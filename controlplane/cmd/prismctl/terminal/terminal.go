// Package terminal is how prismctl speaks: results as tables, JSON or YAML, progress where somebody watches, errors in
// one clear message.
package terminal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/shared/strictyaml"
)

// Terminal is where a command reads and writes.
type Terminal struct {
	In       io.Reader
	Out, Err io.Writer
	// OutTTY and ErrTTY tell whether a person watches.
	OutTTY, ErrTTY bool
	// Width is how many characters fit into a line of Err; 0 means 80.
	Width int
	// Getenv finds environment variables.
	Getenv func(string) string
	// Format is how results are written.
	Format Format
}

// Format is a way to write results. It is the value of the flag --output.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// String returns the format's name.
func (f *Format) String() string { return string(*f) }

// Set takes a format's name.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Table, JSON, YAML:
		*f = Format(s)
		return nil
	}
	return fmt.Errorf("want table, json or yaml")
}

// Type is the word for the value in the help.
func (*Format) Type() string { return "format" }

// Print writes a result: as it is in JSON or YAML, or as the text that table writes.
func (t *Terminal) Print(result proto.Message, table func(w io.Writer)) error {
	var text []byte
	switch t.Format {
	case JSON:
		compact, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(result)
		if err != nil {
			return err
		}
		// protojson varies its white space on purpose; scripts and people want the same every time.
		var out bytes.Buffer
		if err := json.Indent(&out, compact, "", "  "); err != nil {
			return err
		}
		text = append(out.Bytes(), '\n')
	case YAML:
		var err error
		if text, err = strictyaml.Format(result); err != nil {
			return err
		}
	default:
		var out bytes.Buffer
		table(&out)
		text = out.Bytes()
	}
	_, err := t.Out.Write(text)
	return err
}

// Note tells the person something besides the result.
func (t *Terminal) Note(format string, args ...any) {
	fmt.Fprintf(t.Err, format+"\n", args...)
}

// Grid is a table of columns.
type Grid struct {
	rows [][]string
}

// NewGrid makes a table with these column names.
func NewGrid(header ...string) *Grid { return &Grid{rows: [][]string{header}} }

// Row adds a row. Cells are made safe to print; an empty one shows as "-".
func (g *Grid) Row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if row[i] = Clean(c); row[i] == "" {
			row[i] = "-"
		}
	}
	g.rows = append(g.rows, row)
}

// Write writes the table with its columns aligned.
func (g *Grid) Write(w io.Writer) {
	var widths []int
	for _, row := range g.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range g.rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-len([]rune(cell))+3))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// Fields writes names and values, one a line, aligned; empty values are left out.
func Fields(w io.Writer, pairs ...string) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			width = max(width, len(pairs[i]))
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width+1, pairs[i]+":", Clean(pairs[i+1]))
		}
	}
}

// Clean makes text from elsewhere safe for a terminal: what would move the cursor or hide text shows as "?".
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// Time writes a moment; empty when there is none.
func Time(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// Short cuts a hash or version to what people compare.
func Short(version string) string { return version[:min(len(version), 12)] }

// ReadFile reads a file, or standard input for "-". The name it returns is for messages. A file that cannot be read is a
// mistake on the command line that names it.
func (t *Terminal) ReadFile(name string) (data []byte, shown string, err error) {
	if name == "-" {
		data, err = io.ReadAll(t.In)
		return data, "standard input", err
	}
	if data, err = os.ReadFile(name); err != nil {
		if cause, ok := errors.AsType[*fs.PathError](err); ok {
			err = cause.Err // the operation and the path once more
		}
		return nil, name, Misusef("%s: cannot read it: %w", name, err)
	}
	return data, name, nil
}

// PrintValue is Print for what is no message: v is written as encoding/json sees it.
func (t *Terminal) PrintValue(v any, table func(w io.Writer)) error {
	var text []byte
	var err error
	switch t.Format {
	case JSON:
		text, err = json.MarshalIndent(v, "", "  ")
		text = append(text, '\n')
	case YAML:
		var asJSON []byte
		if asJSON, err = json.Marshal(v); err != nil {
			return err
		}
		var node yaml.Node
		if err = yaml.Unmarshal(asJSON, &node); err != nil { // JSON is YAML
			return err
		}
		plain(&node)
		text, err = yaml.Marshal(&node)
	default:
		var out bytes.Buffer
		table(&out)
		text = out.Bytes()
	}
	if err != nil {
		return err
	}
	_, err = t.Out.Write(text)
	return err
}

// plain takes JSON's braces and quotes off a node.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		plain(child)
	}
}
