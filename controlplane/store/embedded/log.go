package embedded

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// core passes etcd's warnings and errors on to slog, until etcd is closed: its way of closing is not quiet.
type core struct {
	log    *slog.Logger
	closed *atomic.Bool
	fields []zapcore.Field
}

func newCore(log *slog.Logger, closed *atomic.Bool) zapcore.Core {
	return core{log: log, closed: closed}
}

func (c core) Enabled(level zapcore.Level) bool {
	return level >= zapcore.WarnLevel && !c.closed.Load()
}

func (c core) With(fields []zapcore.Field) zapcore.Core {
	c.fields = slices.Concat(c.fields, fields)
	return c
}

func (c core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range slices.Concat(c.fields, fields) {
		f.AddTo(encoder)
	}
	level := slog.LevelWarn
	if entry.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	c.log.LogAttrs(context.Background(), level, "etcd", slog.String("event", entry.Message), slog.Any("fields", encoder.Fields))
	return nil
}

func (c core) Sync() error { return nil }
