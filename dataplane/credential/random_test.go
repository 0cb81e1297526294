package credential_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
)

// Whatever happens in whatever order: who holds a credential has one two minutes after the provider is well, nothing is
// asked for in a loop, and after the last user nothing is left.
func TestRandomLivesEndWell(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { randomLife(t, rand.New(rand.NewPCG(seed, 5))) })
		})
	}
}

func randomLife(t *testing.T, r *rand.Rand) {
	d := newDouble(time.Duration(r.IntN(50)+10)*time.Minute, time.Duration(r.IntN(100)+10)*time.Minute)
	if r.IntN(2) == 0 {
		d.maxTTL = d.ttl * time.Duration(r.IntN(4)+1)
	}
	d.latency = time.Duration(r.IntN(3)) * 50 * time.Millisecond
	d.noOwn = r.IntN(4) == 0
	s := start(t, d, func(c *credential.Config) {
		c.Policy.Margin = time.Duration(r.IntN(10)+1) * time.Minute
		c.Policy.Grace = time.Duration(r.IntN(10)-1) * time.Minute
	})
	type user struct {
		h    *credential.Handle
		used uint64
		own  bool // it is fetched by the proxy's own identity
	}
	var users []*user
	paths, owners := []string{"a", "b", "c"}, []string{"ann", "bob", "cid", "dan", ""}
	well := true
	look := func() {
		for _, u := range users {
			if c := u.h.Current(); c != nil && c.Generation != u.used {
				if r.IntN(5) > 0 { // some never say that they have closed what they had
					u.h.Retire(u.used)
				}
				u.used = c.Generation
			}
		}
	}
	for range 300 {
		switch r.IntN(12) {
		case 0, 1, 2:
			owner := owners[r.IntN(len(owners))]
			who := as(owner)
			if owner == "" {
				who = nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(1000))*time.Millisecond)
			h, err := s.Acquire(ctx, credential.Key{Provider: "d", Path: paths[r.IntN(len(paths))], Owner: owner}, who)
			cancel()
			if err == nil {
				users = append(users, &user{h: h, own: owner == ""})
			}
		case 3, 4:
			if len(users) > 0 {
				i := r.IntN(len(users))
				users[i].h.Release()
				users = append(users[:i], users[i+1:]...)
			}
		case 5:
			if len(users) > 0 {
				u := users[r.IntN(len(users))]
				u.h.Refused(u.used)
			}
		case 6:
			d.down()
			well = false
		case 7, 8:
			d.up()
			well = true
		case 9: // somebody revokes something
			if id := d.any(r); id != "" {
				d.drop(id)
			}
		case 10:
			what := []string{"login", "fetch", "renew", "renew-login", "revoke"}[r.IntN(5)]
			why := []error{credential.ErrThrottled, errDown, credential.ErrRefused}[r.IntN(3)]
			if what == "revoke" { // what may not be revoked stays until its end
				why = errDown
			}
			d.failWith(what, fmt.Errorf("no: %w", why))
			well = false
		case 11:
			time.Sleep(time.Duration(r.IntN(60)) * time.Minute)
		}
		time.Sleep(time.Duration(r.IntN(90)) * time.Second)
		look()
	}
	if !well {
		d.up()
	}
	// Long enough for the longest back-off, and for leases that somebody revoked to come up for renewal.
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	look()
	for _, u := range users {
		if u.h.Current() == nil && !(d.noOwn && u.own) {
			t.Errorf("a holder has no credential: %v", u.h.Err())
		}
	}
	if calls := len(d.all()); calls > 50_000 {
		t.Errorf("%d calls", calls)
	}
	for _, u := range users {
		u.h.Release()
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	if n := d.alive(false); n != 0 && !d.noOwn {
		t.Errorf("%d leases are left", n)
	}
	if n := d.alive(true); n > 1 {
		t.Errorf("%d logins are left", n)
	}
	for _, p := range s.Providers() {
		if p.Held != 0 || p.Waiting > 1 || p.Reason != "" { // the proxy's own login may just be renewed
			t.Errorf("in the end: %+v", p)
		}
	}
}
