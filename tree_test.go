// The tests of the module's root are about the source itself: which package may import which (layers_test.go), and that
// what a reader relies on is there (docs_test.go).
package prism_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// module is the path of the Go module whose root this is.
const module = "github.com/prism-gateway/prism"

// goFile is one Go file of the tree.
type goFile struct {
	path      string // from the root, with slashes
	pkg       string // the directory as a pattern names it: "./shared/ident"
	test      bool
	generated bool
	syntax    *ast.File
	positions *token.FileSet
}

// imports lists the packages that the file imports; ours as "./shared/ident", others by their path.
func (f goFile) imports() []string {
	var paths []string
	for _, spec := range f.syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has refused such a file already
		}
		if rest, ours := strings.CutPrefix(imported, module); ours && (rest == "" || rest[0] == '/') {
			imported = "." + rest
		}
		paths = append(paths, imported)
	}
	return paths
}

// line is where in the file node starts.
func (f goFile) line(node ast.Node) int { return f.positions.Position(node.Pos()).Line }

// files lists every file of the tree that git does not ignore, from the root, with slashes.
func files(t *testing.T) []string {
	t.Helper()
	ignored := ignoredPatterns(t)
	var found []string
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		slashed := filepath.ToSlash(name)
		if entry.IsDir() {
			if slashed == ".git" || matchesAny(ignored, "/"+slashed+"/") {
				return filepath.SkipDir
			}
			return nil
		}
		if slashed != ".git" && entry.Type().IsRegular() && !matchesAny(ignored, entry.Name()) {
			found = append(found, slashed)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// ignoredPatterns reads .gitignore, which has two kinds of lines: "/directory/" and "*.suffix".
func ignoredPatterns(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(".gitignore")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))
}

func matchesAny(patterns []string, name string) bool {
	for _, pattern := range patterns {
		if matched, _ := path.Match(pattern, name); matched {
			return true
		}
	}
	return false
}

// goFiles parses every Go file of the tree, those of nested modules too.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var found []goFile
	for _, name := range files(t) {
		if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
			continue
		}
		source, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, parseGo(t, name, string(source)))
	}
	return found
}

func parseGo(t *testing.T, name, source string) goFile {
	t.Helper()
	positions := token.NewFileSet()
	syntax, err := parser.ParseFile(positions, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	pkg := "."
	if dir := path.Dir(name); dir != "." {
		pkg = "./" + dir
	}
	return goFile{
		path:      name,
		pkg:       pkg,
		test:      strings.HasSuffix(name, "_test.go"),
		generated: ast.IsGenerated(syntax),
		syntax:    syntax,
		positions: positions,
	}
}
