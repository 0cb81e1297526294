package builtin_test

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/dataplane/driver/builtin"
	"github.com/prism-gateway/prism/shared/catalog"
)

// TestDriversAreWhatTheCatalogueOffers holds the data plane's list against what the control plane admits and assigns by.
func TestDriversAreWhatTheCatalogueOffers(t *testing.T) {
	drivers := map[string]driver.Driver{}
	for _, d := range builtin.Drivers() {
		if drivers[d.Type()] != nil {
			t.Errorf("%s is listed twice", d.Type())
		}
		drivers[d.Type()] = d
	}
	for _, typ := range catalog.Types() {
		d := drivers[typ.Name]
		delete(drivers, typ.Name)
		switch {
		case d == nil && typ.Offered:
			t.Errorf("the catalogue offers %s, which has no driver", typ.Name)
		case d != nil && !typ.Offered:
			t.Errorf("%s has a driver, which the catalogue does not offer", typ.Name)
		case d != nil && !slices.Equal(d.Interfaces(), typ.Interfaces):
			t.Errorf("%s: the driver offers %q, the catalogue says %q", typ.Name, d.Interfaces(), typ.Interfaces)
		}
	}
	for name := range drivers {
		t.Errorf("%s is not in the catalogue", name)
	}
}

// TestDriversTakeWhatTheCatalogueAdmits opens each type with each setting and endpoint that the control plane lets pass.
// That an instance offers the Go interfaces of its driver's names, and refuses unknown settings, the conformance suite
// shows.
func TestDriversTakeWhatTheCatalogueAdmits(t *testing.T) {
	endpoints := map[catalog.Address][]string{
		catalog.NoAddress: nil, catalog.HostPort: {"127.0.0.1:1"}, catalog.FileAddress: {filepath.Join(t.TempDir(), "items.db")},
	}
	values := map[catalog.Form][]string{catalog.Number: {"0", "3"}, catalog.Duration: {"10s"}, catalog.Text: {"items"}}
	for _, d := range builtin.Drivers() {
		typ, ok := catalog.Type(d.Type())
		if !ok {
			t.Fatalf("%s is not in the catalogue", d.Type())
		}
		take := func(settings map[string]string) {
			t.Helper()
			instance, err := d.Open(driver.Config{Name: "b", Endpoints: endpoints[typ.Address], Settings: settings})
			if err != nil {
				t.Errorf("%s with %v: %v", typ.Name, settings, err)
				return
			}
			if err := instance.Close(); err != nil {
				t.Errorf("%s: Close: %v", typ.Name, err)
			}
		}
		take(nil)
		for _, s := range typ.Settings {
			admitted := append(values[s.Form], s.Values...)
			if len(admitted) == 0 {
				t.Errorf("%s: this test has no value of the form of setting %s", typ.Name, s.Name)
			}
			for _, value := range admitted {
				take(map[string]string{s.Name: value})
			}
		}
	}
}
