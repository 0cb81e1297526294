package prism_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// wellKnown methods have a meaning that their name and signature tell completely.
var wellKnown = []string{
	"Error", "Unwrap", "Is", "As", "GRPCStatus",
	"String", "GoString", "Format", "LogValue",
	"MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText",
	"Len", "Less", "Swap", "Read", "Write", "ServeHTTP",
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	said := map[string]string{} // directory: its problem, empty when there is none
	for _, file := range goFiles(t) {
		if file.test || file.generated {
			continue
		}
		problem := packageComment(file)
		if before, seen := said[file.pkg]; !seen || before != "" {
			said[file.pkg] = problem
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(said)) {
		if said[pkg] != "" {
			t.Errorf("%s: %s", pkg, said[pkg])
		}
	}
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, file := range goFiles(t) {
		if file.test || file.generated || file.syntax.Name.Name == "main" {
			continue
		}
		for _, problem := range undocumented(file) {
			t.Error(problem)
		}
	}
}

func TestUndocumentedNamesAreFound(t *testing.T) {
	for name, tc := range map[string]struct {
		declaration string
		want        []string
	}{
		"a function":                       {"func F() {}", []string{"F"}},
		"a documented function":            {"// F works.\nfunc F() {}", nil},
		"a directive is no documentation":  {"//go:noinline\nfunc F() {}", []string{"F"}},
		"an unexported function":           {"func f() {}", nil},
		"a method":                         {"// T is.\ntype T struct{}\nfunc (*T) M() {}", []string{"M"}},
		"a method of a generic type":       {"// T is.\ntype T[K any] struct{}\nfunc (*T[K]) M() {}", []string{"M"}},
		"an unexported type's method":      {"type t struct{}\nfunc (t) M() {}", nil},
		"a method everybody knows":         {"// T is.\ntype T struct{}\nfunc (T) String() string { return \"\" }", nil},
		"a type":                           {"type T struct{}", []string{"T"}},
		"types in a group, each by itself": {"// Types.\ntype (\n\tT struct{}\n\t// U is.\n\tU struct{}\n)", []string{"T"}},
		"constants under one comment":      {"// All.\nconst (\n\tA = 1\n\tB = 2\n)", nil},
		"a comment behind the constant":    {"const (\n\tA = 1 // the first\n\tB = 2\n)", []string{"B"}},
		"a variable":                       {"var V, w int", []string{"V"}},
		"a documented alias":               {"// T is.\ntype T = int", nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, problem := range undocumented(parseGo(t, "x/x.go", "package x\n"+tc.declaration)) {
				fields := strings.Fields(problem)
				got = append(got, fields[1])
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
}

func TestPackageCommentsAreChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		path, source string
		ok           bool
	}{
		"a package":                {"shared/ident/a.go", "// Package ident names things.\npackage ident", true},
		"no comment":               {"shared/ident/a.go", "package ident", false},
		"another package's name":   {"shared/ident/a.go", "// Package idents names things.\npackage ident", false},
		"a command":                {"controlplane/cmd/prismctl/main.go", "// Command prismctl is the hand.\npackage main", true},
		"a command as a package":   {"controlplane/cmd/prismctl/main.go", "// Package main is the hand.\npackage main", false},
		"detached from its clause": {"shared/ident/a.go", "// Package ident names things.\n\npackage ident", false},
	} {
		t.Run(name, func(t *testing.T) {
			if problem := packageComment(parseGo(t, tc.path, tc.source)); (problem == "") != tc.ok {
				t.Errorf("problem %q, want none: %v", problem, tc.ok)
			}
		})
	}
}

func TestTheTreeHasWhatEveryoneLooksFor(t *testing.T) {
	for _, name := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"} {
		if info, err := os.Stat(name); err != nil || info.Size() == 0 {
			t.Errorf("%s is missing or empty", name)
		}
	}
}

func TestLinksLeadSomewhere(t *testing.T) {
	for _, name := range files(t) {
		if path.Ext(name) != ".md" {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range relativeLinks(string(text)) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), target)); err != nil {
				t.Errorf("%s links to %s, which does not exist", name, target)
			}
		}
	}
}

func TestRelativeLinks(t *testing.T) {
	text := "[a](b.md) [w](https://example.org) ![i](img/x.png \"title\") [s](#here) [p](c.md#part) `[no](code.md)`\n" +
		"```\n[no](fence.md)\n```\n[m](mailto:a@example.org)\n[r]: ref.md\n"
	if got, want := relativeLinks(text), []string{"b.md", "img/x.png", "c.md", "ref.md"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// strays match what belongs to the place where the tree was made and not into it. They are written so that they do not
// match themselves.
var strays = map[string]*regexp.Regexp{
	"a path of somebody's machine": regexp.MustCompile(`(^|[\s"'=:(\x60])/(home/[a-z]|Users/[A-Za-z]|root/|work/)`),
	"the host of a registry":       regexp.MustCompile(`\b(registry\.npmjs|(proxy|sum)\.golang|(deb|snapshot)\.debian|(archive|ports)\.ubuntu|files\.pythonhosted|repo1?\.maven|static\.crates)\.(org|com|io)\b`),
}

func TestNothingOfItsMakersMachineIsInTheTree(t *testing.T) {
	for _, name := range files(t) {
		text, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil {
			t.Fatal(err)
		}
		for _, stray := range findStrays(text) {
			t.Errorf("%s:%s", name, stray)
		}
	}
}

func TestStraysAreFound(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want int
	}{
		"a home directory":       {"cd /" + "home/me/prism", 1},
		"quoted":                 {`open("/` + `root/x")`, 1},
		"a module proxy":         {"https://proxy." + "golang.org/x", 1},
		"a package registry":     {"https://registry." + "npmjs.org/", 1},
		"a part of a longer one": {"deployments/" + "root/x and /var/work/x", 0},
		"a binary file":          {"\x00 /" + "home/me", 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := findStrays([]byte(tc.text)); len(got) != tc.want {
				t.Errorf("found %q, want %d", got, tc.want)
			}
		})
	}
}

// findStrays says which lines of a text file hold a stray, as "line: what it is: the text".
func findStrays(text []byte) []string {
	if slices.Contains(text, 0) {
		return nil
	}
	var found []string
	for number, line := range strings.Split(string(text), "\n") {
		for what, pattern := range strays {
			if match := pattern.FindString(line); match != "" {
				found = append(found, fmt.Sprintf("%d: %s: %q", number+1, what, match))
			}
		}
	}
	return found
}

// packageComment says what is wrong with the file's package comment, or nothing.
func packageComment(file goFile) string {
	want := "Package " + file.syntax.Name.Name + " "
	if file.syntax.Name.Name == "main" {
		want = "Command " + path.Base(file.pkg) + " "
	}
	if !strings.HasPrefix(strings.ReplaceAll(file.syntax.Doc.Text(), "\n", " "), want) {
		return fmt.Sprintf("no file has a package comment that starts %q", want)
	}
	return ""
}

// undocumented lists the exported names that the file declares without a comment.
func undocumented(file goFile) []string {
	var found []string
	report := func(name *ast.Ident) {
		found = append(found, fmt.Sprintf("%s:%d: %s is exported and has no comment", file.path, file.line(name), name.Name))
	}
	for _, decl := range file.syntax.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Name.IsExported() && decl.Doc.Text() == "" && (decl.Recv == nil || needsComment(decl)) {
				report(decl.Name)
			}
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					grouped := decl.Lparen.IsValid()
					if spec.Name.IsExported() && spec.Doc.Text() == "" && (grouped || decl.Doc.Text() == "") {
						report(spec.Name)
					}
				case *ast.ValueSpec:
					if decl.Tok == token.IMPORT || decl.Doc.Text()+spec.Doc.Text()+spec.Comment.Text() != "" {
						continue
					}
					for _, name := range spec.Names {
						if name.IsExported() {
							report(name)
						}
					}
				}
			}
		}
	}
	return found
}

// needsComment tells whether a method can be called by another package and is not one that everybody knows.
func needsComment(method *ast.FuncDecl) bool {
	receiver := method.Recv.List[0].Type
	for {
		switch r := receiver.(type) {
		case *ast.StarExpr:
			receiver = r.X
		case *ast.IndexExpr:
			receiver = r.X
		case *ast.IndexListExpr:
			receiver = r.X
		case *ast.Ident:
			return r.IsExported() && !slices.Contains(wellKnown, method.Name.Name)
		default:
			return true
		}
	}
}

var (
	fences     = regexp.MustCompile("(?ms)^[ \t]*```.*?^[ \t]*```")
	inlineCode = regexp.MustCompile("`[^`\n]*`")
	links      = regexp.MustCompile(`\]\(([^)\s]+)(?:\s+"[^"]*")?\)|(?m:^\[[^\]]+\]:\s*(\S+))`)
)

// relativeLinks lists the files that a Markdown text links to.
func relativeLinks(text string) []string {
	text = inlineCode.ReplaceAllString(fences.ReplaceAllString(text, ""), "")
	var targets []string
	for _, match := range links.FindAllStringSubmatch(text, -1) {
		target, _, _ := strings.Cut(match[1]+match[2], "#")
		if target == "" || strings.Contains(target, ":") {
			continue
		}
		targets = append(targets, target)
	}
	return targets
}
