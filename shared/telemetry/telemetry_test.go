package telemetry_test

import (
	"bytes"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/shared/lifecycle"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/telemetry"
)

func TestLogsAreJSONOfTheLevelAskedForWithoutSecrets(t *testing.T) {
	for name, tc := range map[string]struct {
		level string
		lines int
		fails bool
	}{
		"info is the default": {"", 2, false},
		"debug":               {"debug", 3, false},
		"error":               {"error", 1, false},
		"no such level":       {"loud", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			log, err := telemetry.NewLogger(&out, tc.level)
			if (err != nil) != tc.fails {
				t.Fatal(err)
			}
			if tc.fails {
				return
			}
			canary := struct{ Password secret.Text }{secret.New("hunter2")}
			log.Debug("a", slog.Any(telemetry.KeyName, canary))
			log.Info("b", slog.Any(telemetry.KeyName, canary.Password))
			log.Error("c", slog.Any(telemetry.KeyName, &canary))
			if got := strings.Count(out.String(), "\n"); got != tc.lines {
				t.Errorf("%d lines, want %d", got, tc.lines)
			}
			if !strings.Contains(out.String(), "[secret]") || strings.Contains(out.String(), "hunter2") {
				t.Errorf("logged %s", out.String())
			}
		})
	}
}

func TestGRPCSpeaksOneLevelLower(t *testing.T) {
	var out bytes.Buffer
	log, err := telemetry.NewLogger(&out, "info")
	if err != nil {
		t.Fatal(err)
	}
	b := telemetry.GRPCLog(log)
	b.Infof("connecting to %s", "x")
	b.Warning("lost x")
	b.Errorln("cannot", "serve")
	if got := out.String(); !strings.Contains(got, `"msg":"grpc","reason":"cannot serve"`) || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %s", got)
	}
	if b.V(1) {
		t.Error("verbose")
	}
}

func TestMuxAnswers(t *testing.T) {
	mux := telemetry.NewMux(telemetry.NewRegistry(), lifecycle.NewReadiness("config"))
	for path, tc := range map[string]struct {
		code int
		want string
	}{
		"/metrics": {200, `prism_build_info{go="go1.`},
		"/healthz": {200, `{"healthy":true}`},
		"/readyz":  {503, `"reason":"starting"`},
		"/other":   {404, "not found"},

		"/debug/pprof/": {404, "not found"},
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestProfilesAnswerWhereTheyAreAskedFor(t *testing.T) {
	mux := telemetry.NewMux(telemetry.NewRegistry(), lifecycle.NewReadiness())
	telemetry.Profile(mux)
	for path, want := range map[string]string{
		"/debug/pprof/":                  "goroutine",
		"/debug/pprof/goroutine?debug=1": "TestProfilesAnswerWhereTheyAreAskedFor",
		"/debug/pprof/symbol":            "num_symbols",
		"/healthz":                       "healthy",
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestBuildNamesTheGoVersion(t *testing.T) {
	if got := telemetry.Build(); !strings.Contains(got, " go1.") {
		t.Errorf("got %q", got)
	}
}
