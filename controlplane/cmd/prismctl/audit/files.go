package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/prism-gateway/prism/shared/auditchain"
)

// readFiles reads all chains of a directory, and gives their records to each.
func readFiles(dir string, each func(*auditchain.Record)) ([]chain, error) {
	files, err := auditchain.Files(dir, "")
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there are no records in %s: want the directory that audit.files.dir of a proxy names", dir)
	}
	var out []chain
	var at *auditchain.Verifier
	for _, name := range files {
		if n := len(out); n == 0 || out[n-1].Chain != auditchain.ChainOf(name) {
			out, at = append(out, chain{Chain: auditchain.ChainOf(name)}), &auditchain.Verifier{}
		}
		one := &out[len(out)-1]
		if one.Damage != "" {
			continue // what follows what is broken proves nothing
		}
		if one.Note != "" {
			one.Damage, one.Note = "a file ends in the middle of a record, and another follows it", ""
			continue
		}
		one.Files++
		if err := one.file(name, at, each); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *chain) file(name string, v *auditchain.Verifier, each func(*auditchain.Record)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = v.Read(f, each)
	number, _ := v.State()
	c.Records, c.First, c.Last, c.From = v.Count, v.First, v.Last, number+1-v.Count
	damage, broken := errors.AsType[*auditchain.Damage](err)
	switch {
	case errors.Is(err, auditchain.ErrTorn):
		c.Note = "the last record is being written, or its writer was stopped"
	case broken:
		c.Damage = filepath.Base(name) + ": " + damage.Error()
	case err != nil:
		return err
	case v.Count > 0 && v.Chain != c.Chain:
		c.Damage = fmt.Sprintf("%s: holds the chain %q", filepath.Base(name), v.Chain)
	}
	return nil
}
