package fleet

import (
	"slices"
	"testing"
)

func TestWhatWasGivenIsPassedOn(t *testing.T) {
	cmd := (&Commands{}).simulate()
	cmd.PersistentFlags().StringSlice("admin", nil, "")
	err := cmd.ParseFlags([]string{"--proxies", "7", "--admin", "a:1", "--fleet", "a:2", "--id-prefix=-x", "--duration", "1m", "--join", "--partitions-view"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--duration=1m0s", "--id-prefix=-x", "--partitions-view=true", "--proxies=7"}
	if got := passed(cmd); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTheFleetIsAtTheUsualPortOfTheControlPlanesHosts(t *testing.T) {
	for name, tc := range map[string]struct {
		admins, want []string
		ok           bool
	}{
		"one":                 {[]string{"127.0.0.1:8981"}, []string{"127.0.0.1:18000"}, true},
		"several":             {[]string{"a.example:8981", "[::1]:9000"}, []string{"a.example:18000", "[::1]:18000"}, true},
		"a name without port": {[]string{"a.example"}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := fleetAddresses(tc.admins)
			if !slices.Equal(got, tc.want) || (err == nil) != tc.ok {
				t.Errorf("%v, %v; want %v", got, err, tc.want)
			}
		})
	}
}
