// Package authz decides what a principal may do with the data of a namespace.
//
// It is pure: rules come with the namespace's configuration, and what a method needs is declared beside it in the
// protobuf. What is not declared, nobody may.
package authz

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	commonv1 "github.com/prism-gateway/prism/protos/prism/common/v1"
	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/principal"
)

// Permission is what an operation needs.
type Permission int

// The permissions; each holds those before it.
const (
	None Permission = iota // nobody has it
	Read
	Write
)

// String names the permission.
func (p Permission) String() string { return [...]string{"none", "read", "write"}[p] }

// Table says what each method needs. It does not change.
type Table struct{ methods map[string]Permission }

// NewTable reads the permissions that the methods of the files declare.
func NewTable(files ...protoreflect.FileDescriptor) Table {
	t := Table{methods: map[string]Permission{}}
	for _, file := range files {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				t.methods[fmt.Sprintf("/%s/%s", service.FullName(), m.Name())] = declared(m)
			}
		}
	}
	return t
}

func declared(m protoreflect.MethodDescriptor) Permission {
	switch proto.GetExtension(m.Options(), commonv1.E_Permission) {
	case commonv1.Permission_PERMISSION_READ:
		return Read
	case commonv1.Permission_PERMISSION_WRITE:
		return Write
	}
	return None
}

// Needs is what a method needs, by its full name such as /prism.data.v1.KeyValue/Get; None when it is not known or
// declares nothing.
func (t Table) Needs(method string) Permission { return t.methods[method] }

// Methods are the full names of all methods, in no order.
func (t Table) Methods() []string {
	out := make([]string, 0, len(t.methods))
	for m := range t.methods {
		out = append(out, m)
	}
	return out
}

// Policy is who may do what with one namespace. It does not change. The members of the namespace's team are owners.
type Policy struct {
	team                     string
	owners, writers, readers principal.Matcher
}

// Compile makes the policy of a namespace that belongs to team. An error names the field.
func Compile(team string, access *configv1.Access) (*Policy, error) {
	p := &Policy{team: team}
	for _, list := range []struct {
		field string
		rules []*configv1.Principal
		into  *principal.Matcher
	}{{"owners", access.GetOwners(), &p.owners}, {"writers", access.GetWriters(), &p.writers}, {"readers", access.GetReaders(), &p.readers}} {
		m, err := principal.NewMatcher(list.rules)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list.field, err)
		}
		*list.into = m
	}
	return p, nil
}

// Allows reports whether a principal has a permission. A nil principal is nobody, who has none.
func (p *Policy) Allows(who *principal.Principal, need Permission) bool {
	if who == nil || need == None {
		return false
	}
	if p.owner(who) || p.writers.Match(who) {
		return true
	}
	return need == Read && p.readers.Match(who)
}

func (p *Policy) owner(who *principal.Principal) bool {
	for _, t := range who.Teams {
		if p.team != "" && t == p.team {
			return true
		}
	}
	return p.owners.Match(who)
}
