package credential

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prism-gateway/prism/shared/secret"
)

const (
	journalFile = "leases.journal"
	journalLock = "leases.lock"
	// deadLines is how many lines of leases that have ended may stand in the file beside those of as many that have not.
	deadLines = 1024
)

// castagnoli is the polynomial that processors compute.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one line of the journal: a lease, or with a number alone that the lease of that number has ended.
type record struct {
	Number         uint64 `json:"n"`
	Provider       string `json:"provider,omitempty"`
	Login          bool   `json:"login,omitempty"`
	ID             string `json:"id,omitempty"`
	VaultNamespace string `json:"namespace,omitempty"`
	Issued         int64  `json:"issued,omitempty"`  // Unix seconds
	Expires        int64  `json:"expires,omitempty"` // Unix seconds, as first told; 0: never
}

// lease is what the record names.
func (r record) lease() Lease {
	return Lease{Login: r.Login, ID: secret.New(r.ID), VaultNamespace: r.VaultNamespace}
}

// journal remembers, beyond the death of the process, which leases have not ended. A lease is on disk before its
// credential is used. Its file is the owner's alone, for a lease's id is a secret. A nil journal remembers nothing.
type journal struct {
	dir  string
	lock *os.File

	syncing sync.Mutex // guards synced; is taken before mu
	synced  uint64     // how many writes are on disk

	mu      sync.Mutex // guards what follows
	file    *os.File
	size    int64
	lines   int
	written uint64 // how many writes there were
	next    uint64
	alive   map[uint64]struct{}
}

// openJournal takes the directory for this process and returns the leases that a former one did not end. damaged is how
// many lines could not be read: the torn one of a crash, or others.
func openJournal(dir string) (j *journal, left []record, damaged int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, 0, err
	}
	lock, err := lockExclusive(filepath.Join(dir, journalLock))
	if err != nil {
		return nil, nil, 0, err
	}
	j = &journal{dir: dir, lock: lock, alive: map[uint64]struct{}{}}
	records := map[uint64]record{}
	damaged, err = j.scan(func(r record, _ []byte) {
		if r.Provider == "" {
			delete(records, r.Number)
		} else {
			records[r.Number] = r
		}
		j.next = max(j.next, r.Number)
	})
	if err != nil {
		lock.Close()
		return nil, nil, 0, err
	}
	for number, r := range records {
		j.alive[number] = struct{}{}
		left = append(left, r)
	}
	if err := j.compactLocked(); err != nil {
		lock.Close()
		return nil, nil, 0, err
	}
	return j, left, damaged, nil
}

// scan reads the file's good lines in order.
func (j *journal) scan(each func(r record, line []byte)) (damaged int, err error) {
	f, err := os.Open(filepath.Join(j.dir, journalFile))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			if r, ok := decodeRecord(line); ok {
				each(r, line)
			} else {
				damaged++
			}
		}
		if err == io.EOF {
			return damaged, nil
		}
		if err != nil {
			return damaged, err
		}
	}
}

// encodeRecord makes a line: the checksum of what follows it, the record, a line feed.
func encodeRecord(r record) []byte {
	body, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("a journal's record of texts and numbers: %v", err))
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body)
}

func decodeRecord(line []byte) (record, bool) {
	var r record
	sum, body, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if !found || len(line) == 0 || line[len(line)-1] != '\n' {
		return r, false
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil || crc32.Checksum(body, castagnoli) != uint32(want) {
		return r, false
	}
	return r, json.Unmarshal(body, &r) == nil
}

// add writes a lease down and returns its number when it is on disk. With an error it may not be there.
func (j *journal) add(provider string, l Lease, issued, expires time.Time) (uint64, error) {
	if j == nil || l.ID.IsZero() {
		return 0, nil
	}
	r := record{Provider: provider, Login: l.Login, ID: l.ID.Reveal(), VaultNamespace: l.VaultNamespace, Issued: issued.Unix()}
	if !expires.IsZero() {
		r.Expires = expires.Unix()
	}
	j.mu.Lock()
	j.next++
	r.Number = j.next
	err := j.writeLocked(encodeRecord(r))
	if err == nil {
		j.alive[r.Number] = struct{}{}
	}
	mine := j.written
	j.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return r.Number, j.sync(mine)
}

// sync returns when that many writes are on disk. Those who wait meanwhile share the next one.
func (j *journal) sync(upTo uint64) error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	if j.synced >= upTo {
		return nil
	}
	j.mu.Lock()
	file, written := j.file, j.written
	j.mu.Unlock()
	if err := file.Sync(); err != nil {
		return err
	}
	j.synced = written
	return nil
}

// remove writes down that leases have ended. It need not be on disk: at worst they are revoked once more.
func (j *journal) remove(numbers ...uint64) error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	var err error
	for _, number := range numbers {
		if _, ok := j.alive[number]; !ok || number == 0 {
			continue
		}
		delete(j.alive, number)
		if err == nil {
			err = j.writeLocked(encodeRecord(record{Number: number}))
		}
	}
	full := j.lines > 2*len(j.alive)+deadLines
	j.mu.Unlock()
	if err != nil || !full {
		return err
	}
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.compactLocked()
}

// writeLocked appends. A line that was not written whole, as on a full disk, is cut off.
func (j *journal) writeLocked(line []byte) error {
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		j.file.Truncate(j.size) // else the next line overwrites its beginning, and the checksum tells the rest
		return err
	}
	j.size += int64(len(line))
	j.lines++
	j.written++
	return nil
}

// compactLocked writes the file anew with what has not ended, and goes on with that one.
func (j *journal) compactLocked() error {
	path := filepath.Join(j.dir, journalFile)
	temp, err := os.OpenFile(path+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	out, size, lines := bufio.NewWriter(temp), int64(0), 0
	_, err = j.scan(func(r record, line []byte) {
		if _, ok := j.alive[r.Number]; !ok || r.Provider == "" {
			return
		}
		out.Write(line) // its error is told by Flush
		size += int64(len(line))
		lines++
	})
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		err = temp.Sync()
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		temp.Close()
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size, j.lines, j.synced = temp, size, lines, j.written
	return syncDir(j.dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// len is how many leases have not ended.
func (j *journal) len() int {
	if j == nil {
		return 0
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.alive)
}

// close gives the directory free.
func (j *journal) close() {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.file.Close()
	j.lock.Close()
}
