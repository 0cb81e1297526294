package auditchain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// fileName is that of a file of a chain: the chain's name and the number of the first record.
var fileName = regexp.MustCompile(`^(.+)-([0-9]{20})\.jsonl$`)

// FileName is the name of the file of a chain that begins with a record.
func FileName(chain string, number uint64) string {
	return fmt.Sprintf("%s-%020d.jsonl", chain, number)
}

// Files are the files of a chain in a directory, oldest first; none when there is no directory. An empty chain means all.
func Files(dir, chain string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if m := fileName.FindStringSubmatch(e.Name()); m != nil && (chain == "" || m[1] == chain) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(out)
	return out, err
}

// ChainOf is the chain that a file is of, by its name.
func ChainOf(path string) string {
	if m := fileName.FindStringSubmatch(filepath.Base(path)); m != nil {
		return m[1]
	}
	return ""
}
