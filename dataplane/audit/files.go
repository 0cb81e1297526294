package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/prism-gateway/prism/shared/auditchain"
)

const defaultFileBytes = 256 << 20

// Files keeps records in files of JSON lines, PROXY-NUMBER.jsonl, by the number of their first record. Older ones may be moved
// away; the newest must stay.
type Files struct {
	dir, proxy string
	maxBytes   int64

	file *os.File
	size int64
	torn bool   // what is behind size is to be cut off
	next uint64 // the number of the record that comes next
	cut  int64  // bytes of a last line that was not whole when it was opened
}

// Cut is how many bytes of a last line that was not whole Open has removed.
func (f *Files) Cut() int64 { return f.cut }

// NewFiles makes the sink. A new file begins after maxBytes; 0 means 256 MiB.
func NewFiles(dir, proxy string, maxBytes int64) *Files {
	return &Files{dir: dir, proxy: proxy, maxBytes: cmp.Or(maxBytes, defaultFileBytes)}
}

// Open finds the newest record, and cuts off a last line that was not written whole.
func (f *Files) Open(context.Context) (number uint64, hash string, err error) {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return 0, "", err
	}
	names, err := auditchain.Files(f.dir, f.proxy)
	if err != nil {
		return 0, "", err
	}
	for _, name := range slices.Backward(names) {
		v := auditchain.Verifier{}
		whole, err := f.resume(name, &v)
		if err != nil {
			return 0, "", err
		}
		if v.Count == 0 {
			if err := os.Remove(name); err != nil { // nothing of it was written whole
				return 0, "", err
			}
			continue
		}
		if f.file, err = os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
			return 0, "", err
		}
		f.size = whole
		number, hash = v.State()
		break
	}
	f.next = number + 1
	return number, hash, nil
}

// resume reads a file and cuts off what is not whole. Damage before that is not mended: it is what the chain is for.
func (f *Files) resume(name string, v *auditchain.Verifier) (int64, error) {
	file, err := os.OpenFile(name, os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	whole, err := v.Read(file, nil)
	if errors.Is(err, auditchain.ErrTorn) {
		info, statErr := file.Stat()
		if statErr == nil {
			f.cut = info.Size() - whole
		}
		err = errors.Join(statErr, file.Truncate(whole))
	}
	if err != nil {
		err = fmt.Errorf("%s: %w; move it away, and look into it", name, err)
	}
	return whole, errors.Join(err, file.Close())
}

// Write appends lines and waits until they are on the disk.
func (f *Files) Write(_ context.Context, lines [][]byte) error {
	if f.file == nil || f.size >= f.maxBytes {
		if err := f.begin(); err != nil {
			return err
		}
	}
	if f.torn {
		if err := f.file.Truncate(f.size); err != nil {
			return err
		}
	}
	text := slices.Concat(lines...)
	f.torn = true // until it is whole
	if _, err := f.file.Write(text); err != nil {
		return err
	}
	if err := f.file.Sync(); err != nil {
		return err
	}
	f.torn = false
	f.size += int64(len(text))
	f.next += uint64(len(lines))
	return nil
}

func (f *Files) begin() error {
	name := filepath.Join(f.dir, auditchain.FileName(f.proxy, f.next))
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(f.dir); err != nil {
		return errors.Join(err, file.Close(), os.Remove(name))
	}
	if f.file != nil {
		err = f.file.Close()
	}
	f.file, f.size, f.torn = file, 0, false
	return err
}

// syncDir makes the names in a directory survive a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close closes the newest file.
func (f *Files) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}
