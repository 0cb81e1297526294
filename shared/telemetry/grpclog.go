package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/grpc/grpclog"
)

// GRPCLog writes what grpc-go itself has to say to a logger, one level lower than grpc-go thinks of it, because a lost
// connection is news to whoever needed it and they report it. A program passes it to grpclog.SetLoggerV2 once, before
// it uses gRPC; that is global to the process, so no package does it.
func GRPCLog(l *slog.Logger) grpclog.LoggerV2 { return bridge{l} }

type bridge struct{ log *slog.Logger }

func (b bridge) write(level slog.Level, text string) {
	b.log.LogAttrs(context.Background(), level, "grpc", slog.String(KeyReason, strings.TrimSuffix(text, "\n")))
}

func (b bridge) Info(args ...any)                    { b.at(slog.LevelDebug-1, fmt.Sprint, args) }
func (b bridge) Infoln(args ...any)                  { b.at(slog.LevelDebug-1, fmt.Sprintln, args) }
func (b bridge) Infof(format string, args ...any)    { b.format(slog.LevelDebug-1, format, args) }
func (b bridge) Warning(args ...any)                 { b.at(slog.LevelDebug, fmt.Sprint, args) }
func (b bridge) Warningln(args ...any)               { b.at(slog.LevelDebug, fmt.Sprintln, args) }
func (b bridge) Warningf(format string, args ...any) { b.format(slog.LevelDebug, format, args) }
func (b bridge) Error(args ...any)                   { b.at(slog.LevelInfo, fmt.Sprint, args) }
func (b bridge) Errorln(args ...any)                 { b.at(slog.LevelInfo, fmt.Sprintln, args) }
func (b bridge) Errorf(format string, args ...any)   { b.format(slog.LevelInfo, format, args) }

func (b bridge) Fatal(args ...any)                 { b.fatal(fmt.Sprint(args...)) }
func (b bridge) Fatalln(args ...any)               { b.fatal(fmt.Sprintln(args...)) }
func (b bridge) Fatalf(format string, args ...any) { b.fatal(fmt.Sprintf(format, args...)) }

// V reports whether grpc-go should say more than it usually does: never.
func (bridge) V(level int) bool { return level <= 0 }

func (b bridge) at(level slog.Level, text func(...any) string, args []any) {
	if b.log.Enabled(context.Background(), level) {
		b.write(level, text(args...))
	}
}

func (b bridge) format(level slog.Level, format string, args []any) {
	if b.log.Enabled(context.Background(), level) {
		b.write(level, fmt.Sprintf(format, args...))
	}
}

// fatal ends the process, as the interface demands.
func (b bridge) fatal(text string) {
	b.write(slog.LevelError, text)
	os.Exit(1)
}
