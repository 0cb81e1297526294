package selection_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/prism-gateway/prism/controlplane/admission"
	"github.com/prism-gateway/prism/controlplane/selection"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/catalog"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/strictyaml"
)

var update = flag.Bool("update", false, "write the golden files")

// print writes a selection for people: what was chosen, then why.
func print(s selection.Selection) string {
	var b strings.Builder
	for _, p := range s.Patterns {
		fmt.Fprintf(&b, "%s: %s %s, %s, %s\n", p.Name, p.Type, p.Version, p.Durability, p.Consistency)
		fmt.Fprintf(&b, "  interfaces %s\n", strings.Join(p.Interfaces, " "))
		fmt.Fprintf(&b, "  ttl %s, largest value %d, reads %d/s, writes %d/s, data %d\n", p.DefaultTTL, p.MaxValueBytes, p.ReadRPS, p.WriteRPS, p.DataBytes)
		for _, slot := range p.Slots {
			fmt.Fprintf(&b, "  slot %s type=%q backend=%q labels=%v\n", slot.Purpose, slot.Type, slot.Backend, slot.Labels)
		}
	}
	if s.Region != "" {
		fmt.Fprintf(&b, "region %s\n", s.Region)
	}
	for _, d := range s.Decisions {
		fmt.Fprintf(&b, "%s %s -> %s by %s: %s\n", d.Stage, d.Subject, d.Choice, d.Rule, d.Reason)
	}
	return b.String()
}

func TestSelections(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			docs, err := admission.ParseYAML(file, data)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, d := range docs {
				if v := admission.Validate(d.Request); len(v) > 0 {
					t.Error(d.Problems(v))
				}
				s, err := selection.Select(d.Request)
				if err != nil {
					t.Fatal(err)
				}
				got.WriteString(print(s))
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhatAdmissionRefusesIsRefusedHereToo(t *testing.T) {
	for name, pattern := range map[string]*configv1.Pattern{
		"pattern": {Name: "a", Type: "queue"},
		"version": {Name: "a", Type: "keyvalue", Version: "9.x"},
		"size":    {Name: "a", Type: "keyvalue", Needs: &configv1.Needs{DataSize: "lots"}},
		"slot":    {Name: "a", Type: "keyvalue", Slots: []*configv1.Slot{{Name: "redis"}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := selection.Select(&configv1.NamespaceRequest{Namespace: "orders", Patterns: []*configv1.Pattern{pattern}})
			if f := fault.From(err); f == nil || f.Code != fault.Invalid {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A rule that names a need, a value or an interface that does not exist would never apply.
func TestRulesOfTheCatalogueMeanSomething(t *testing.T) {
	fields := (*configv1.Needs)(nil).ProtoReflect().Descriptor().Fields()
	seen := map[string]bool{}
	for _, r := range catalog.Rules() {
		if seen[r.ID] {
			t.Errorf("%s stands twice", r.ID)
		}
		seen[r.ID] = true
		field := fields.ByTextName(r.Need)
		if field == nil {
			t.Errorf("%s: needs have no %s", r.ID, r.Need)
			continue
		}
		if r.Value != "" && (field.Enum() == nil || strictyaml.EnumNumber(field.Enum(), r.Value) == 0) {
			t.Errorf("%s: %s cannot be %s", r.ID, r.Need, r.Value)
		}
		if field.Enum() != nil && !r.Interface && strictyaml.EnumNumber(field.Enum(), r.Choice) == 0 {
			t.Errorf("%s: %s cannot be %s", r.ID, r.Need, r.Choice)
		}
		if _, ok := catalog.InterfaceByName(r.Choice); r.Interface && !ok {
			t.Errorf("%s: no interface %s", r.ID, r.Choice)
		}
		if r.Reason == "" {
			t.Errorf("%s has no reason", r.ID)
		}
	}
}
