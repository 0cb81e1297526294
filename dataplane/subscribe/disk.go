package subscribe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prism-gateway/prism/shared/ident"
	"github.com/prism-gateway/prism/shared/telemetry"
)

const (
	stateFile   = "state"
	stateCopy   = "state.copy"
	lockFile    = "lock"
	setSuffix   = ".members"      // after the root of the collection that the file holds
	copySuffix  = ".members.copy" // the same, the second file of a shared set
	tempSuffix  = ".tmp"
	saveRetries = 30 * time.Second
	// saveEvery is how long the disk rests after a state was saved. What is on disk is a cache: changes that follow each
	// other fast are saved once.
	saveEvery = 200 * time.Millisecond
)

// disk is a directory with the last good state. A file <root>.members holds the members of one collection and is what
// its name says or is refused: the root covers every byte that matters. The file state says which collections make up
// the state and is replaced last, so that at any moment the directory holds one whole state, old or new. A collection says
// neither of which partition it is nor which shared set it is in effect with, so that without that file all of them would
// be of no use: it is there twice. So is each shared set, without which every partition that names it would be.
type disk struct {
	dir     string
	node    string
	lock    *os.File
	present map[string]bool // names of files of collections that are there, whole
}

// openDisk takes the directory for this process. It fails when another has it.
func openDisk(dir, node string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockExclusive(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, err
	}
	return &disk{dir: dir, node: node, lock: lock, present: map[string]bool{}}, nil
}

func (d *disk) close() { d.lock.Close() }

// load reads the last good state. What cannot be used is left out and named among the problems.
func (d *disk) load() (*saved, []error) {
	empty := &saved{sets: map[ident.Hash]*version{}, cells: map[ident.Partition]savedCell{}}
	index, err := d.loadIndex(stateFile)
	var problems []error
	if err != nil {
		problems = append(problems, err)
		if index, err = d.loadIndex(stateCopy); err != nil {
			if errors.Is(problems[0], fs.ErrNotExist) && errors.Is(err, fs.ErrNotExist) {
				return empty, nil // nothing was ever saved
			}
			return empty, append(problems, err)
		}
		problems[0] = fmt.Errorf("%w; its copy is used", problems[0])
	}
	if index.node != d.node {
		return empty, append(problems, fmt.Errorf("%s: it is of the proxy %q, not of %q", filepath.Join(d.dir, stateFile), index.node, d.node))
	}
	s, missing := d.loadCollections(index)
	return s, append(problems, missing...)
}

func (d *disk) loadIndex(name string) (*stateIndex, error) {
	path := filepath.Join(d.dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	index, err := decodeState(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return index, nil
}

func (d *disk) loadCollections(index *stateIndex) (*saved, []error) {
	var problems []error
	s := &saved{
		node: index.node, installation: index.installation, revision: index.revision, lastContact: index.lastContact,
		assignment: index.assignment, sets: map[ident.Hash]*version{}, cells: map[ident.Partition]savedCell{},
	}
	for i, encoded := range index.sets {
		v, err := d.loadVersion(encoded, setSuffix)
		if err != nil {
			first := fmt.Errorf("shared set: %w", err)
			if v, err = d.loadVersion(encoded, copySuffix); err != nil {
				problems = append(problems, first, fmt.Errorf("shared set: %w", err))
				continue
			}
			problems = append(problems, fmt.Errorf("%w; its copy is used", first))
		}
		s.sets[v.root()] = v
		if index.current == i+1 {
			s.shared = v
		}
	}
	without := map[ident.Hash][]string{} // by the set that is not here: who needs it
	for _, c := range index.cells {
		v, err := d.loadVersion(c.sentinel, setSuffix)
		if err != nil {
			problems = append(problems, fmt.Errorf("%v: %w", c.partition, err))
			continue
		}
		if !v.shared.IsZero() && s.sets[v.shared] == nil {
			without[v.shared] = append(without[v.shared], c.partition.String())
			continue
		}
		s.cells[c.partition] = savedCell{partition: c.partition, version: v, refused: c.refused}
	}
	for set, partitions := range without {
		problems = append(problems, fmt.Errorf("the shared set %v is not here, and nothing of the %d partitions that name it can be used: %s",
			set, len(partitions), strings.Join(partitions, " ")))
	}
	return s, problems
}

// loadVersion reads the collection that the sentinel describes from its file with that suffix, and verifies it.
func (d *disk) loadVersion(encoded []byte, suffix string) (*version, error) {
	root, err := sentinelRoot(encoded)
	if err != nil {
		return nil, err
	}
	if root.IsZero() {
		return newVersion(nothing.manifest, nothing.members, encoded)
	}
	name := root.String() + suffix
	path := filepath.Join(d.dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, members, err := decodeMembers(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v, err := newVersion(m, members, encoded)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.present[name] = true
	return v, nil
}

// save makes s the state on disk: first the collections that are not there, then the files that name them.
func (d *disk) save(s *saved) error {
	needed := map[string]bool{}
	wrote := false
	keep := func(v *version, suffix string) error {
		name := v.root().String() + suffix
		if v.root().IsZero() || needed[name] {
			return nil
		}
		needed[name] = true
		if d.present[name] {
			return nil
		}
		wrote = true
		err := d.replace(filepath.Join(d.dir, name), encodeMembers(v))
		d.present[name] = err == nil
		return err
	}
	for _, v := range s.versions() {
		if err := keep(v, setSuffix); err != nil {
			return err
		}
	}
	sets := slices.Collect(maps.Values(s.sets))
	if s.shared != nil {
		sets = append(sets, s.shared)
	}
	for _, v := range sets {
		if err := keep(v, copySuffix); err != nil {
			return err
		}
	}
	if wrote { // the names of the collections must last before the state refers to them
		if err := d.sync(); err != nil {
			return err
		}
	}
	state := encodeState(s)
	for _, name := range []string{stateFile, stateCopy} { // one after the other: a kill spoils one at most
		if err := d.replace(filepath.Join(d.dir, name), state); err != nil {
			return err
		}
	}
	if err := d.sync(); err != nil {
		return err
	}
	return d.sweep(needed)
}

// replace writes a file under another name, has it last, and gives it its name.
func (d *disk) replace(path string, data []byte) error {
	temp := path + tempSuffix
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp) // room on a full disk; what is left is swept later
	}
	return err
}

func (d *disk) sync() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// sweep removes files of ours that the state does not name. Files of others stay.
func (d *disk) sweep(needed map[string]bool) error {
	for name := range d.present {
		if needed[name] {
			continue
		}
		delete(d.present, name)
		if err := os.Remove(filepath.Join(d.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sweepAll removes what a process that was killed left behind: files of ours that no state names.
func (d *disk) sweepAll() error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		temp, isTemp := strings.CutSuffix(e.Name(), tempSuffix)
		if isCollection(e.Name()) && !d.present[e.Name()] || isTemp && (temp == stateFile || temp == stateCopy || isCollection(temp)) {
			if err := os.Remove(filepath.Join(d.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// isCollection reports whether a file of that name is one of a collection's.
func isCollection(name string) bool {
	text, ok := strings.CutSuffix(name, setSuffix)
	if !ok {
		text, ok = strings.CutSuffix(name, copySuffix)
	}
	root, err := ident.ParseHash(text)
	return ok && err == nil && !root.IsZero()
}

// saver writes the newest state to disk, one at a time; states that came meanwhile are skipped.
type saver struct {
	client *Client
	disk   *disk
	next   chan *saved // holds the newest
}

// put has s written soon. It does not block. It is called from one goroutine.
func (s *saver) put(state *saved) {
	s.client.metrics.unsaved.Set(1)
	select {
	case <-s.next:
	default:
	}
	s.next <- state
}

func (s *saver) run(ctx context.Context) {
	swept := false
	var failed *saved
	next := s.next              // nil while the disk rests
	var rested <-chan time.Time // nil while it does not
	retry := time.NewTimer(saveRetries)
	defer retry.Stop()
	for {
		var state *saved
		select {
		case state = <-next:
			next, rested = nil, time.After(saveEvery)
		case <-rested:
			next, rested = s.next, nil
		case <-retry.C:
			state = failed
		case <-ctx.Done():
			select {
			case state = <-s.next: // the last word
				s.write(state)
			default:
			}
			return
		}
		if state == nil {
			continue
		}
		failed = nil
		s.client.metrics.unsaved.Set(0) // first, so that a state that comes meanwhile counts
		if err := s.write(state); err != nil {
			s.client.metrics.unsaved.Set(1)
			failed = state
			retry.Reset(saveRetries)
		} else if !swept {
			swept = true
			if err := s.disk.sweepAll(); err != nil {
				s.client.log.Warn("the state directory keeps old files", telemetry.KeyError, err)
			}
		}
	}
}

// write saves one state and tells when that begins to fail or to work again.
func (s *saver) write(state *saved) error {
	err := s.disk.save(state)
	former := s.client.saveErr.Load()
	if err != nil {
		text := err.Error()
		s.client.saveErr.Store(&text)
		s.client.metrics.persistErrors.Inc()
		if former == nil {
			s.client.log.Error("the state is not kept on disk; serving goes on", telemetry.KeyError, err)
		}
		return err
	}
	if former != nil {
		s.client.saveErr.Store(nil)
		s.client.log.Info("the state is kept on disk again")
	}
	return nil
}
