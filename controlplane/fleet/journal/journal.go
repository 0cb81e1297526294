// Package journal keeps on disk what proxies served when.
//
// It is a row of segments. Each begins with all that is known at the time, so that it says by itself what was served at
// any moment until the next begins, and the oldest can go when the space is used up. What is noted is written at once and
// not forced to the disk: a process that dies loses nothing, a machine that dies loses the last seconds.
package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	recordv1 "github.com/prism-gateway/prism/protos/prism/record/v1"

	"github.com/prism-gateway/prism/shared/ident"
)

// Config is what a Journal needs.
type Config struct {
	// Dir is where the segments are; it is made when it is not there. Required.
	Dir string
	// MaxBytes is about how much is kept; 0 means 64 MiB.
	MaxBytes int64
	// Logger is required.
	Logger *slog.Logger
}

// Entry is one thing to note of a proxy.
type Entry struct {
	Proxy string
	At    time.Time
	// Begins says that Cells are all that it serves; Gone that it is no longer in the fleet.
	Begins, Gone bool
	Cells        []Cell
	Dropped      []ident.Partition
}

// Cell is what a proxy served of one partition.
type Cell struct {
	Partition    ident.Partition
	Root, Shared ident.Hash
	Snapshot     uint64
	// Since and Other are not for Entries: since when it was so, and until when something else was before, zero when
	// that is not known.
	Since, Other time.Time
}

// Served is what a proxy served at a moment.
type Served struct {
	// Begun is when it began the report that this is from; zero when it was not heard of.
	Begun time.Time
	// Cells are by partition.
	Cells []Cell
	// Oldest is from when on the journal tells everything; zero when it is empty.
	Oldest time.Time
}

// Journal keeps what proxies served. Its methods may be called from any goroutine.
type Journal struct {
	cfg Config

	mu     sync.Mutex // guards these; never held while a file is written
	queue  []Entry
	lost   uint64        // entries that found the queue full
	wake   chan struct{} // is sent to after the queue has grown
	synced []chan struct{}

	stopped chan struct{} // closed when nothing is written any more

	// These belong to Run.
	started time.Time
	failing bool // the last write failed
	known   index
	file    *os.File // nil before the first, and after it could not be written
	number  uint64   // of the newest segment, 0 before the first
	size    int64    // of file
	restate int64    // how much of it is what it began with
}

// maxQueue bounds what waits for a disk that hangs.
const maxQueue = 100_000

// New checks cfg. It does no I/O.
func New(cfg Config) (*Journal, error) {
	if cfg.Dir == "" || cfg.Logger == nil {
		return nil, errors.New("journal: Config.Dir and Config.Logger are required")
	}
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 64<<20)
	return &Journal{cfg: cfg, wake: make(chan struct{}, 1), stopped: make(chan struct{}), known: index{}}, nil
}

// Note notes what has changed. It returns at once and keeps the entry's cells.
func (j *Journal) Note(e Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.queue) >= maxQueue {
		j.lost++
		return
	}
	j.queue = append(j.queue, e)
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Lost is how many entries were not noted, because the disk took none for long.
func (j *Journal) Lost() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lost
}

// Run writes what is noted until ctx ends, which is no error. A directory that cannot be used, or that another process
// uses, is one: nothing is noted then. A Journal runs once.
func (j *Journal) Run(ctx context.Context) error {
	defer close(j.stopped)
	j.started = time.Now()
	taken, err := j.open()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer taken.Close()
	defer func() {
		if j.file != nil {
			_ = j.file.Close() // all was written
		}
	}()
	for {
		select {
		case <-j.wake:
			j.write()
		case <-ctx.Done():
			j.write()
			return nil
		}
	}
}

// open takes the directory for this process, and goes on where the journal ended.
func (j *Journal) open() (*os.File, error) {
	if err := os.MkdirAll(j.cfg.Dir, 0o750); err != nil {
		return nil, err
	}
	taken, err := os.OpenFile(filepath.Join(j.cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, err
	}
	if err := lock(taken); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is another process's: %w", j.cfg.Dir, err), taken.Close())
	}
	numbers, err := segments(j.cfg.Dir)
	for _, n := range slices.Backward(numbers) {
		var empty bool
		if empty, err = j.resume(n); err != nil || !empty {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, taken.Close())
	}
	return taken, nil
}

// resume learns what the newest segment says, and cuts off what was not written whole. It removes one that says nothing.
func (j *Journal) resume(n uint64) (empty bool, err error) {
	path := j.path(n)
	whole, err := scan(path, func(e *recordv1.JournalEntry) bool {
		j.known.take(e)
		return false
	})
	if err != nil {
		return false, err
	}
	if whole == 0 {
		return true, os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return false, err
	}
	if err := f.Truncate(whole); err != nil {
		return false, errors.Join(err, f.Close())
	}
	j.file, j.size, j.number = f, whole, n
	return false, nil
}

// write writes what is queued.
func (j *Journal) write() {
	j.mu.Lock()
	queue, synced := j.queue, j.synced
	j.queue, j.synced = nil, nil
	j.mu.Unlock()
	defer func() {
		for _, done := range synced {
			close(done)
		}
	}()
	if len(queue) == 0 {
		return
	}
	if j.file == nil {
		j.rotate(queue[0].At)
	}
	var buffer []byte
	for _, e := range queue {
		entry := j.known.note(e)
		var err error
		if buffer, err = encode(buffer, entry); err != nil {
			j.cfg.Logger.Error("what a proxy serves cannot be noted", "proxy", e.Proxy, "error", err)
		}
	}
	if j.file == nil {
		return // the next segment begins with it
	}
	if err := j.append(buffer); err != nil {
		j.trouble(err)
	} else if j.size-j.restate >= max(j.cfg.MaxBytes/4, j.restate) {
		j.rotate(queue[len(queue)-1].At) // and not now: what is noted meanwhile was before
	}
}

func (j *Journal) append(data []byte) error {
	n, err := j.file.Write(data)
	j.size += int64(n)
	j.failing = j.failing && err != nil
	return err
}

// trouble gives a segment up that cannot be written: the next begins with all that is known.
func (j *Journal) trouble(err error) {
	if !j.failing {
		j.cfg.Logger.Warn("what proxies serve is not noted", "error", err)
	}
	j.failing = true
	if j.file != nil {
		_ = j.file.Close() // it is broken anyway
		j.file = nil
	}
}

// rotate begins a segment with all that is known at a time, and removes the oldest while there is too much.
func (j *Journal) rotate(at time.Time) {
	for name, p := range j.known {
		if p.begun.Before(j.started) {
			delete(j.known, name) // it has not reported here since long
		}
	}
	now := timestamppb.New(at)
	buffer, err := encode(nil, &recordv1.JournalEntry{At: now})
	for entry := range j.known.all(now) {
		if err == nil {
			buffer, err = encode(buffer, entry)
		}
	}
	if err != nil {
		j.trouble(err)
		return
	}
	f, err := os.OpenFile(j.path(j.number+1), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		j.trouble(err)
		return
	}
	if j.file != nil {
		_ = j.file.Close() // all was written
	}
	j.file, j.size, j.number = f, 0, j.number+1
	if err := j.append(buffer); err != nil {
		j.trouble(errors.Join(err, os.Remove(j.path(j.number)))) // half of it would say that the rest was not served
		return
	}
	j.restate = j.size
	if err := j.trim(); err != nil {
		j.cfg.Logger.Warn("old segments of the journal were not removed", "error", err)
	}
}

func (j *Journal) trim() error {
	numbers, err := segments(j.cfg.Dir)
	if err != nil {
		return err
	}
	kept := j.cfg.MaxBytes / 4 // room for the newest to grow
	for i, n := range slices.Backward(numbers) {
		info, err := os.Stat(j.path(n))
		if err != nil {
			return err
		}
		if kept += info.Size(); kept <= j.cfg.MaxBytes || i == len(numbers)-1 {
			continue
		}
		for _, old := range numbers[:i+1] {
			err = errors.Join(err, os.Remove(j.path(old)))
		}
		return err
	}
	return nil
}

// At returns what a proxy served at a moment, as far as it was noted until At was called.
func (j *Journal) At(ctx context.Context, proxy string, at time.Time) (Served, error) {
	done := make(chan struct{})
	j.mu.Lock()
	j.synced = append(j.synced, done)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	select {
	case <-done:
	case <-j.stopped:
		return Served{}, errors.New("journal: it is not written")
	case <-ctx.Done():
		return Served{}, ctx.Err()
	}
	numbers, err := segments(j.cfg.Dir)
	if err != nil || len(numbers) == 0 {
		return Served{}, err
	}
	var served Served
	for _, n := range slices.Backward(numbers) {
		began, known, err := j.read(n, proxy, at)
		if errors.Is(err, fs.ErrNotExist) {
			break // it was removed meanwhile, and all before it
		}
		if err != nil {
			return Served{}, err
		}
		if !began.IsZero() {
			served.Oldest = began
		}
		if began.IsZero() || began.After(at) {
			continue
		}
		if p := known[proxy]; p != nil {
			served.Begun, served.Cells = p.begun, p.sorted()
		}
		served.Oldest, err = j.began(numbers[0])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Served{}, err
		}
		break
	}
	return served, nil
}

// began is when a segment begins.
func (j *Journal) began(n uint64) (began time.Time, err error) {
	_, err = scan(j.path(n), func(e *recordv1.JournalEntry) bool {
		began = e.GetAt().AsTime()
		return true
	})
	return began, err
}

// read learns from a segment what a proxy served at a moment, if the segment begins before.
func (j *Journal) read(n uint64, proxy string, at time.Time) (began time.Time, known index, err error) {
	known = index{}
	_, err = scan(j.path(n), func(e *recordv1.JournalEntry) bool {
		when := e.GetAt().AsTime()
		if began.IsZero() {
			began = when
		}
		if e.GetProxy() == proxy && !when.After(at) {
			known.take(e)
		}
		return began.After(at)
	})
	return began, known, err
}
