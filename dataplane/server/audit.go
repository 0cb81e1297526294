package server

import (
	"errors"

	"github.com/prism-gateway/prism/dataplane/audit"
	"github.com/prism-gateway/prism/dataplane/dataapi"
	"github.com/prism-gateway/prism/shared/lifecycle"
)

// newAudit makes the log of accesses, where the configuration says that there is one.
func (s *Server) newAudit() (err error) {
	c := s.cfg.Settings.GetAudit()
	switch {
	case c == nil:
		return nil
	case c.GetFiles() == nil:
		return errors.New("audit: this build records in files only")
	}
	s.audit, err = audit.New(audit.Config{
		Proxy: s.cfg.Settings.GetId(), Sink: audit.NewFiles(c.GetFiles().GetDir(), s.cfg.Settings.GetId(), int64(c.GetFiles().GetMaxFileBytes())),
		Buffer: int(c.GetBuffer()), Logger: s.cfg.Logger, Registerer: s.registry,
	})
	return err
}

// recorder is the log, or nil.
func (s *Server) recorder() dataapi.Recorder {
	if s.audit == nil {
		return nil
	}
	return s.audit
}

// auditParts write the log.
func (s *Server) auditParts() []lifecycle.Part {
	if s.audit == nil {
		return nil
	}
	return []lifecycle.Part{{Name: "audit", Run: s.audit.Run}}
}
