package certs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/telemetry"
)

// settle is how long after a first change files are read, so that certificate and key are both there.
const settle = 200 * time.Millisecond

// files are PEM files.
type files struct {
	paths  *bootstrapv1.CertificateFiles
	every  time.Duration
	now    func() time.Time
	logger *slog.Logger
	last   *material // what was read last and is whole; one goroutine at a time loads
}

func (f *files) patient() bool { return false }

// load reads the files.
func (f *files) load(context.Context) (*material, error) {
	var parts [4][]byte
	for i, path := range f.list() {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		parts[i] = data
	}
	if f.last != nil && f.last.sum == sum(parts[:]...) {
		return f.last, nil // lists may be long, and events of other files in the directory many
	}
	m, err := parse(parts[0], parts[1], parts[2], parts[3], f.now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.paths.GetCertFile(), err)
	}
	f.last = m
	return m, nil
}

func (f *files) list() []string {
	return []string{f.paths.GetCertFile(), f.paths.GetKeyFile(), f.paths.GetCaFile(), f.paths.GetCrlFile()}
}

// watch watches the directories of the files, not the files: those are replaced by renaming, or are links to a directory
// that another link names, as Kubernetes has it. It also looks every now and then, because a file may be a link to
// somewhere else, and because not every file system tells.
func (f *files) watch(ctx context.Context, _ *material, take func(*material, error) error) error {
	var changed <-chan fsnotify.Event
	var lost <-chan error // such as that there were more events than fit
	w, err := fsnotify.NewWatcher()
	if err != nil {
		f.logger.Warn("changes of certificates are found by looking only", telemetry.Error(err))
	} else {
		defer w.Close()
		changed, lost = w.Events, w.Errors
	}
	poll := time.NewTicker(f.every)
	defer poll.Stop()
	var settled <-chan time.Time
	failed := false
	look := func() {
		for _, path := range f.list() {
			if path != "" && w != nil {
				_ = w.Add(filepath.Dir(path)) // a directory that is away is looked for again at the next poll
			}
		}
		m, err := f.load(ctx)
		if err != nil && !failed { // perhaps they are just being written
			failed, settled = true, time.After(settle)
			return
		}
		failed = err != nil
		_ = take(m, err) // which tells it
	}
	look()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			if settled == nil {
				settled = time.After(settle)
			}
		case <-lost:
			if settled == nil {
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			look()
		case <-poll.C:
			look()
		}
	}
}
