// Command conformance runs the conformance suite of all drivers against real servers, in random order, twice and with the
// race detector, and prints one table of cases and drivers. It ends with 1 when a case failed, was skipped, or did not run
// as often as it should.
//
// usage: conformance ROOT [GO TEST FLAG ...]
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
)

const times = 2

// event is a line of go test -json.
type event struct {
	Action, Package, Test, Output string
}

// caseName is what a case begins with, such as KV-01.
var caseName = regexp.MustCompile(`^[A-Z]{2}-[0-9]{2}_`)

// results are how often each case passed, by its name and its driver.
type results struct {
	passed  map[string]map[string]int
	drivers map[string]bool
	wrong   []string          // what failed or was skipped
	output  map[string]string // of each test, until it has passed
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance ROOT [GO TEST FLAG ...]")
		os.Exit(2)
	}
	args := append([]string{"test", "-json", "-race", "-shuffle=on", fmt.Sprintf("-count=%d", times), "-timeout=60m", "-run=^TestConformance$"}, os.Args[2:]...)
	cmd := exec.Command("go", append(args, "./dataplane/driver/...", "./dataplane/dataapi")...)
	cmd.Dir, cmd.Stderr = os.Args[1], os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
	r := &results{passed: map[string]map[string]int{}, drivers: map[string]bool{}, output: map[string]string{}}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if json.Unmarshal(line, &e) == nil {
			r.add(e)
		}
		if err != nil {
			break
		}
	}
	failed := cmd.Wait()
	complete := r.print(os.Stdout)
	if failed != nil || !complete {
		for _, w := range r.wrong {
			fmt.Println(w)
		}
		os.Exit(1)
	}
}

// add takes an event into account.
func (r *results) add(e event) {
	test := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.output[test] += e.Output
		return
	case "skip", "fail":
		if e.Action == "skip" && e.Test == "" {
			return // a package without tests
		}
		r.wrong = append(r.wrong, e.Action+": "+test+"\n"+r.output[test])
		return
	case "pass":
		delete(r.output, test)
	default:
		return
	}
	parts := strings.Split(e.Test, "/")
	driver := path.Base(e.Package)
	if driver == "dataapi" && len(parts) > 2 { // the cases of the API name their store
		driver, parts = parts[1], parts[1:]
	}
	if len(parts) != 2 || !caseName.MatchString(parts[1]) {
		return
	}
	// A case that the suite runs for the drivers and through the API counts where it ran.
	name := parts[1]
	if path.Base(e.Package) == "dataapi" {
		name += " (API)"
	}
	if r.passed[name] == nil {
		r.passed[name] = map[string]int{}
	}
	r.passed[name][driver]++
	r.drivers[driver] = true
}

// print prints the table, and says whether each case passed as often as it should.
func (r *results) print(w io.Writer) (complete bool) {
	drivers := slices.Sorted(maps.Keys(r.drivers))
	complete = len(drivers) > 0
	fmt.Fprintf(w, "| case | %s |\n|---|%s\n", strings.Join(drivers, " | "), strings.Repeat("---|", len(drivers)))
	total := map[string]int{}
	names := slices.SortedFunc(maps.Keys(r.passed), func(a, b string) int { return cmp.Compare(a, b) })
	for _, name := range names {
		cells := make([]string, len(drivers))
		for n, driver := range drivers {
			switch passed := r.passed[name][driver]; {
			case passed == 0:
				cells[n] = "" // of an interface that the driver does not offer
			case passed == times:
				cells[n], total[driver] = fmt.Sprint(passed), total[driver]+1
			default:
				cells[n], complete = fmt.Sprintf("**%d**", passed), false
			}
		}
		fmt.Fprintf(w, "| %s | %s |\n", strings.Replace(name, "_", " ", 1), strings.Join(cells, " | "))
	}
	cells := make([]string, len(drivers))
	for n, driver := range drivers {
		cells[n] = fmt.Sprint(total[driver])
	}
	fmt.Fprintf(w, "| cases | %s |\n\n", strings.Join(cells, " | "))
	fmt.Fprintf(w, "A number is how often a case passed; nothing, that the driver does not offer its interface, which is refused with "+
		"INTERFACE_MISSING (through the API, for every driver). Failed or skipped: %d.\n", len(r.wrong))
	return complete && len(r.wrong) == 0
}
