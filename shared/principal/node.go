package principal

import "strings"

// Node is the program that a certificate names: the last segment of its SPIFFE id, or the first part of its common name.
// Empty when it names none.
func (p *Principal) Node() string {
	if p == nil {
		return ""
	}
	if p.SPIFFE == "" {
		return p.Name
	}
	return p.SPIFFE[strings.LastIndexByte(p.SPIFFE, '/')+1:]
}

// Beside reports whether two certificates name programs of one kind: their names differ in the node at most.
func (p *Principal) Beside(other *Principal) bool {
	switch {
	case p == nil || other == nil || p.Node() == "" || other.Node() == "":
		return false
	case p.SPIFFE != "" && other.SPIFFE != "":
		return strings.TrimSuffix(p.SPIFFE, p.Node()) == strings.TrimSuffix(other.SPIFFE, other.Node())
	}
	return p.SPIFFE == other.SPIFFE && p.Environment == other.Environment && p.Region == other.Region
}
