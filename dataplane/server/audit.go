package server

import (
	"context"
	"fmt"
	"strings"

	"github.com/prism-gateway/prism/dataplane/audit"
	"github.com/prism-gateway/prism/dataplane/credential"
	"github.com/prism-gateway/prism/dataplane/dataapi"
	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
	"github.com/prism-gateway/prism/shared/lifecycle"
)

// newAudit makes the log of accesses, where the configuration says that there is one.
func (s *Server) newAudit() (err error) {
	c := s.cfg.Settings.GetAudit()
	if c == nil {
		return nil
	}
	cfg := audit.Config{Proxy: s.cfg.Settings.GetId(), Buffer: int(c.GetBuffer()), Logger: s.cfg.Logger, Registerer: s.registry}
	if files := c.GetFiles(); files != nil {
		cfg.Sink = audit.NewFiles(files.GetDir(), cfg.Proxy, int64(files.GetMaxFileBytes()))
	} else if cfg.Sink, err = s.auditTable(c.GetPostgres()); err != nil {
		return err
	}
	s.audit, err = audit.New(cfg)
	return err
}

// auditTable is the sink in PostgreSQL, opened with a credential of the proxy's own.
func (s *Server) auditTable(c *bootstrapv1.AuditPostgres) (*audit.Postgres, error) {
	cfg := audit.PostgresConfig{Endpoint: c.GetEndpoint(), Database: c.GetDatabase(), CAFile: c.GetCaFile(), Proxy: s.cfg.Settings.GetId()}
	if path := c.GetCredentialPath(); path != "" {
		provider, rest, ok := strings.Cut(path, "://")
		if _, known := s.identity.addresses[provider]; !ok || rest == "" || !known {
			return nil, fmt.Errorf("audit.postgres.credential_path: %q names none of credential_providers and a path, such as vault://database/creds/audit", path)
		}
		key := credential.Key{Provider: provider, Path: rest, Owner: "records of access"}
		cfg.Credential = func(ctx context.Context) (*credential.Handle, error) {
			return s.identity.source.Acquire(ctx, key, func() *credential.Login { return nil })
		}
	}
	return audit.NewPostgres(cfg)
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
