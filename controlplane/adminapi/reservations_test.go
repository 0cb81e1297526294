package adminapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prism-gateway/prism/controlplane/adminapi"
	"github.com/prism-gateway/prism/controlplane/quota"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
)

func (r *replica) reserve(t *testing.T, name string) (*controlv1.ReserveNameResponse, error) {
	return r.ReserveName(t.Context(), &controlv1.ReserveNameRequest{Namespace: name, Team: "payments", Note: note("alice", "for May")})
}

func (r *replica) createWith(t *testing.T, name, token string) error {
	_, err := r.CreateNamespace(t.Context(), &controlv1.CreateNamespaceRequest{Request: request(name), ReservationToken: token})
	return err
}

// logged is a log that a test reads.
type logged struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestReserveName(t *testing.T) {
	var log logged
	r := seeded(t, func(cfg *adminapi.Config) { cfg.Log = slog.New(slog.NewJSONHandler(&log, nil)) })
	other := start(t)
	made, err := r.reserve(t, "orders")
	if err != nil {
		t.Fatal(err)
	}
	held := made.Reservation
	if held.Namespace != "orders" || held.Team != "payments" || held.Author != "alice" || held.Message != "for May" || len(made.Token) < 24 ||
		held.ExpiresAt.AsTime().Sub(held.ReservedAt.AsTime()) != 24*time.Hour || held.RenewAt.AsTime().Sub(held.ReservedAt.AsTime()) != 12*time.Hour {
		t.Errorf("%v", made)
	}
	_, err = other.reserve(t, "orders")
	refused(t, err, fault.FailedPrecondition, fault.Reserved)
	f := refused(t, other.createWith(t, "orders", ""), fault.FailedPrecondition, fault.Reserved)
	if strings.Contains(f.Text, "alice") || strings.Contains(f.Text, "payments") {
		t.Errorf("the refusal names another tenant: %s", f.Text)
	}
	refused(t, other.createWith(t, "orders", "WRONG"), fault.FailedPrecondition, fault.Reservation)
	_, err = other.RenewName(t.Context(), &controlv1.RenewNameRequest{Namespace: "orders", Token: "WRONG"})
	refused(t, err, fault.FailedPrecondition, fault.Reservation)
	if _, err := other.RenewName(t.Context(), &controlv1.RenewNameRequest{Namespace: "orders", Token: made.Token}); err != nil {
		t.Errorf("renewed at another replica: %v", err)
	}
	// The token is nowhere but with its holder.
	client, err := etcd.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	stored, err := client.Get(t.Context(), "/"+prefix(t)+"/n/orders")
	if err != nil || stored.Count != 1 || bytes.Contains(stored.Kvs[0].Value, []byte(made.Token)) {
		t.Errorf("stored %v, %v", stored, err)
	}
	if err := other.createWith(t, "orders", made.Token); err != nil {
		t.Fatal(err)
	}
	if err := other.createWith(t, "orders", made.Token); err != nil {
		t.Errorf("an identical retry: %v", err)
	}
	_, err = r.reserve(t, "orders")
	refused(t, err, fault.Exists, fault.AlreadyThere)
	if strings.Contains(log.String(), made.Token) {
		t.Error("the log holds the token")
	}
	var audited []string
	for line := range strings.Lines(log.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry["msg"] == "reservation of a name" {
			audited = append(audited, fmt.Sprint(entry["operation"], " ", entry["namespace"], " ", entry["author"], " ", entry["note"], " ", entry["outcome"]))
		}
	}
	if want := []string{"reserve orders alice for May done", "reserve orders alice for May EXISTS"}; !slices.Equal(audited, want) {
		t.Errorf("audited %q", audited)
	}
}

func TestReserveNameRefusesWhatCanBeNoNamespace(t *testing.T) {
	r := start(t)
	_, err := r.ReserveName(t.Context(), &controlv1.ReserveNameRequest{Namespace: "Orders", Team: "Pay", Lease: durationpb.New(time.Second)})
	if f := refused(t, err, fault.Invalid, fault.Field); !slices.Equal(fields(f), []string{"lease", "namespace", "team"}) {
		t.Error(f.Violations)
	}
}

func TestReleaseName(t *testing.T) {
	r := start(t)
	made, err := r.reserve(t, "orders")
	if err != nil {
		t.Fatal(err)
	}
	release := func(token, why string) error {
		_, err := r.ReleaseName(t.Context(), &controlv1.ReleaseNameRequest{Namespace: "orders", Token: token, Note: note("operator", why)})
		return err
	}
	refused(t, release("", ""), fault.Invalid, fault.Field)
	refused(t, release("WRONG", ""), fault.FailedPrecondition, fault.Reservation)
	if err := release(made.Token, ""); err != nil {
		t.Fatal(err)
	}
	refused(t, release(made.Token, ""), fault.FailedPrecondition, fault.Reservation)
	if _, err := r.reserve(t, "orders"); err != nil {
		t.Fatal(err)
	}
	if err := release("", "the team is gone"); err != nil {
		t.Errorf("taken away: %v", err)
	}
	refused(t, release("", "again"), fault.NotFound, fault.Reservation)
}

func TestReservedNamesCountAndPage(t *testing.T) {
	r := seeded(t, bounded(quota.Bounds{Namespaces: 5}))
	tokens := map[string]string{}
	for i := range 5 {
		name := fmt.Sprint("name-", i)
		made, err := r.reserve(t, name)
		if err != nil {
			t.Fatal(err)
		}
		tokens[name] = made.Token
	}
	_, err := r.reserve(t, "one-more")
	byQuota(t, err, "namespaces")
	byQuota(t, r.make(t, request("one-more")), "namespaces")
	if err := r.createWith(t, "name-3", tokens["name-3"]); err != nil {
		t.Errorf("a reserved name is counted already: %v", err)
	}
	byQuota(t, r.make(t, request("one-more")), "namespaces")
	if _, err := r.ApplyNamespaces(t.Context(), &controlv1.ApplyNamespacesRequest{ReservationTokens: tokens, Changes: []*controlv1.NamespaceChange{
		{Request: request("name-1")}, {Request: request("name-2")},
	}}); err != nil {
		t.Errorf("several with their tokens: %v", err)
	}
	var names []string
	for token, more := "", true; more; more = token != "" {
		page, err := r.ListReservedNames(t.Context(), &controlv1.ListReservedNamesRequest{PageSize: 1, PageToken: token})
		if err != nil || page.TotalCount != 2 {
			t.Fatal(page, err)
		}
		for _, one := range page.Reservations {
			names = append(names, one.Namespace)
		}
		token = page.NextPageToken
	}
	if !slices.Equal(names, []string{"name-0", "name-4"}) {
		t.Error(names)
	}
}
