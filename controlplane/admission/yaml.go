// Package admission is the first stage of the pipeline: it reads requests and backends from YAML and JSON, writes them
// as YAML, and holds them against every rule.
//
// Validate tells what is wrong with a request, NotOffered what is right but beyond this build. Both report everything
// at once. The package is pure: it reads no file and knows no store.
package admission

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

// What one file may hold.
const (
	MaxFileBytes = 4 << 20
	MaxDocuments = 10_000
)

// Problem is something wrong with a file.
type Problem struct {
	File   string
	Line   int    // from 1
	Column int    // from 1, in characters
	Field  string // path such as needs.ttl; empty for the whole
	Text   string
}

// Error returns file:line:column: field: text.
func (p Problem) Error() string {
	at := p.File + ":" + strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column) + ": "
	if p.Field != "" {
		at += p.Field + ": "
	}
	return at + p.Text
}

// Problems are all problems of a file, in its order. As an error it is never empty.
type Problems []Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Document is one request of a file.
type Document struct {
	Request *configv1.NamespaceRequest
	Source
}

// BackendDocument is one backend of a file.
type BackendDocument struct {
	Backend *configv1.Backend
	Source
}

// Source is where in a file something was read.
type Source struct {
	file string
	doc  *strictyaml.Document
}

// Problems returns violations with their places in the file, in its order. A field that the file leaves out has the place
// of the nearest one that would hold it.
func (s Source) Problems(violations []fault.Violation) Problems {
	var found Problems
	for _, v := range violations {
		line, column, _ := s.doc.Place(v.Field)
		found = append(found, Problem{File: s.file, Line: line, Column: column, Field: v.Field, Text: v.Text})
	}
	slices.SortStableFunc(found, byPlace)
	return found
}

func byPlace(a, b Problem) int {
	if a.Line != b.Line {
		return a.Line - b.Line
	}
	return a.Column - b.Column
}

// ParseYAML reads all requests of a file, in YAML or JSON. It takes nothing that a person cannot have meant: no unknown
// or repeated key, no value of another type, no anchor, no name that stands twice. It does not Validate. The name stands
// in errors; an error is a Problems.
func ParseYAML(name string, data []byte) ([]Document, error) {
	docs, err := parse(name, data, "namespace", "request",
		func() *configv1.NamespaceRequest { return new(configv1.NamespaceRequest) },
		(*configv1.NamespaceRequest).GetNamespace)
	if err != nil {
		return nil, err
	}
	out := make([]Document, len(docs))
	for i, d := range docs {
		out[i] = Document{Request: d.message, Source: d.Source}
	}
	return out, nil
}

// ParseBackendsYAML reads all backends of a file, as ParseYAML reads requests.
func ParseBackendsYAML(name string, data []byte) ([]BackendDocument, error) {
	docs, err := parse(name, data, "name", "backend",
		func() *configv1.Backend { return new(configv1.Backend) },
		(*configv1.Backend).GetName)
	if err != nil {
		return nil, err
	}
	out := make([]BackendDocument, len(docs))
	for i, d := range docs {
		out[i] = BackendDocument{Backend: d.message, Source: d.Source}
	}
	return out, nil
}

// FormatYAML writes a request as a document that ParseYAML reads back to an equal one. A request that no file can say,
// such as one with a duration out of range, is an error.
func FormatYAML(req *configv1.NamespaceRequest) ([]byte, error) { return strictyaml.Format(req) }

type parsed[M proto.Message] struct {
	message M
	Source
}

func parse[M proto.Message](name string, data []byte, key, noun string, fresh func() M, nameOf func(M) string) ([]parsed[M], error) {
	fail := func(line, column int, format string, args ...any) ([]parsed[M], error) {
		return nil, Problems{{File: name, Line: line, Column: column, Text: fmt.Sprintf(format, args...)}}
	}
	if len(data) > MaxFileBytes {
		return fail(1, 1, "the file has %d bytes; at most %d are read, so split it", len(data), MaxFileBytes)
	}
	if at, why := unreadable(data); at >= 0 {
		line := 1 + bytes.Count(data[:at], []byte("\n"))
		column := 1 + utf8.RuneCount(data[bytes.LastIndexByte(data[:at], '\n')+1:at])
		return fail(line, column, why, data[at])
	}
	sources, err := strictyaml.Parse(name, plainJSON(data))
	if err != nil {
		return nil, problems(name, data, err)
	}
	switch {
	case len(sources) == 0:
		return fail(1, 1, "the file holds no %s", noun)
	case len(sources) > MaxDocuments:
		return fail(sources[MaxDocuments].Line(), 1, "the file holds %d documents; at most %d are read, so split it", len(sources), MaxDocuments)
	}
	var found Problems
	first := map[string]int{}
	docs := make([]parsed[M], len(sources))
	for i, source := range sources {
		d := parsed[M]{message: fresh(), Source: Source{file: name, doc: source}}
		docs[i] = d
		if err := source.Decode(d.message); err != nil {
			found = append(found, problems(name, data, err)...)
		}
		object := nameOf(d.message)
		line, column, _ := source.Place(key)
		if before, twice := first[object]; twice && object != "" {
			found = append(found, Problem{name, line, column, key,
				fmt.Sprintf("%q stands twice in this file, first on line %d", object, before)})
		} else {
			first[object] = line
		}
	}
	if len(found) > 0 {
		slices.SortStableFunc(found, byPlace)
		return nil, found
	}
	return docs, nil
}

// unreadable finds the first byte that no YAML file may have.
func unreadable(data []byte) (at int, why string) {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return i, "byte 0x%02x is not UTF-8; save the file as UTF-8"
		case r < ' ' && r != '\t' && r != '\n' && r != '\r':
			return i, "control character 0x%02x; write it as an escape in double quotes"
		}
		i += size
	}
	return -1, ""
}

// plainJSON rewrites the escapes of JSON that YAML does not have: \/ and surrogate pairs. What is not JSON stays.
func plainJSON(data []byte) []byte {
	if !bytes.Contains(data, []byte(`\`)) || !json.Valid(data) {
		return data
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			out = append(out, data[i])
			continue
		}
		high, isUnit := codeUnit(data[i:])
		switch {
		case data[i+1] == '/':
			out = append(out, '/')
			i++
		case isUnit && utf16.IsSurrogate(high):
			i += 5
			low, _ := codeUnit(data[i+1:])
			r := utf16.DecodeRune(high, low)
			if r != utf8.RuneError {
				i += 6
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, data[i], data[i+1])
			i++
		}
	}
	return out
}

// codeUnit reads \u1234.
func codeUnit(data []byte) (rune, bool) {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(data[2:6]), 16, 16)
	return rune(n), err == nil
}

// problems takes over what strictyaml found. Where YAML itself is broken it tells only a line, or nothing for the first.
func problems(name string, data []byte, err error) Problems {
	all, ok := errors.AsType[strictyaml.Errors](err)
	if !ok {
		return Problems{{File: name, Line: 1, Column: 1, Text: err.Error()}}
	}
	var found Problems
	for _, e := range all {
		p := Problem{File: name, Line: max(e.Line, 1), Column: max(e.Column, 1), Field: e.Field, Text: e.Text}
		if e.Column == 0 && strings.Contains(e.Text, "cannot start any token") {
			if line, column := tabIndent(data, p.Line); line > 0 {
				p.Line, p.Column = line, column
				p.Text = "a tab stands in the indentation; YAML wants spaces"
			}
		}
		found = append(found, p)
	}
	return found
}

// tabIndent finds a tab in the indentation of a line or of the one after it, because the parser names either.
func tabIndent(data []byte, line int) (at, column int) {
	lines := bytes.Split(data, []byte("\n"))
	for n := line; n <= line+1 && n <= len(lines); n++ {
		text := lines[n-1]
		indent := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]
		if i := bytes.IndexByte(indent, '\t'); i >= 0 {
			return n, i + 1
		}
	}
	return 0, 0
}
