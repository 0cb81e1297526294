// Package file is the provider of credentials that stand in JSON files, such as those that a secrets operator mounts.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/prism-gateway/prism/dataplane/credential"
)

// maxBytes bounds a file; one that is longer is refused by its length.
const maxBytes = 64 << 10

// Provider reads files below a directory. Its methods may be called concurrently.
type Provider struct {
	credential.Static
	dir string
}

// New makes a Provider of the files below dir, which may come later.
func New(dir string) (*Provider, error) {
	if dir == "" {
		return nil, errors.New("file: a directory is required")
	}
	return &Provider{dir: dir}, nil
}

// Type returns file.
func (*Provider) Type() string { return "file" }

// Fetch reads the file of a path, which may be a link, but not to outside of the directory. Others than its user may not be
// able to read it.
func (p *Provider) Fetch(ctx context.Context, r credential.Request) (credential.Issued, error) {
	if err := ctx.Err(); err != nil {
		return credential.Issued{}, err
	}
	if !fs.ValidPath(r.Path) || r.Path == "." || strings.ContainsAny(r.Path, "\\\x00") {
		return credential.Issued{}, fmt.Errorf("%q is no path of a file: %w", r.Path, credential.ErrRefused)
	}
	data, err := p.read(r.Path)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", r.Path, err)
	}
	c, err := credential.Parse(data)
	if err != nil {
		return credential.Issued{}, fmt.Errorf("%s: %w", r.Path, err)
	}
	return credential.Issued{Credential: c}, nil
}

func (p *Provider) read(name string) ([]byte, error) {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: %w", err, credential.ErrRefused)
	}
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) { // such as a link to outside
			return nil, fmt.Errorf("%w: %w", path.Err, credential.ErrRefused)
		}
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("is no file: %w", credential.ErrRefused)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("others may read it (mode %04o, want 0600 or less): %w", info.Mode().Perm(), credential.ErrRefused)
	}
	return io.ReadAll(io.LimitReader(f, maxBytes+1))
}
