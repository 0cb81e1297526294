package snapshot

import recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

// Commit is what became of a change.
type Commit struct {
	// Tree holds the change; it is the head that was known when the change was found to change nothing.
	Tree *Tree
	// Snapshot is Tree's record, which may tell of other changes too. Its version is 0 when nothing was recorded yet.
	Snapshot *recordv1.Snapshot
	// Revision is the revision of the store at which Tree became its head.
	Revision int64
	// Changed is false when the configuration was so already and no snapshot was made.
	Changed bool
	// InRelease is whether the change goes to the fleet in the release that bears Snapshot's number. Else every owner
	// gets it at once.
	InRelease bool
}
