package store

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/prism-gateway/prism/controlplane/snapshot"
	"github.com/prism-gateway/prism/shared/ident"
)

// keys are the names of what is stored.
type keys struct{ prefix string }

func (k keys) install() string                  { return k.prefix + "/install" }
func (k keys) head() string                     { return k.prefix + "/head" }
func (k keys) placement() string                { return k.prefix + "/placement" }
func (k keys) election() string                 { return k.prefix + "/leader" }
func (k keys) turn() string                     { return k.prefix + "/turn" }
func (k keys) members() string                  { return k.prefix + "/members/" }
func (k keys) replicas() string                 { return k.prefix + "/replicas/" }
func (k keys) marks() string                    { return k.prefix + "/marks/" }
func (k keys) names() string                    { return k.prefix + "/n/" }
func (k keys) name(namespace string) string     { return k.names() + namespace }
func (k keys) releases() string                 { return k.prefix + "/r/" }
func (k keys) release(version uint64) string    { return fmt.Sprintf("%s%020d", k.releases(), version) }
func (k keys) snapshots() string                { return k.prefix + "/s/" }
func (k keys) snapshot(version uint64) string   { return fmt.Sprintf("%s%020d", k.snapshots(), version) }
func (k keys) nodes(n snapshot.NodeKind) string { return k.prefix + "/" + string(rune(n)) + "/" }

func (k keys) node(kind snapshot.NodeKind, h ident.Hash) string { return k.nodes(kind) + h.String() }

// version returns the version in a snapshot's key.
func (k keys) version(key string) (uint64, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(key, k.snapshots()), 10, 64)
	if err != nil || k.snapshot(v) != key {
		return 0, fmt.Errorf("store: %s is no key of a snapshot", key)
	}
	return v, nil
}
