package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prism-gateway/prism/shared/secret"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	const canary = "canary-5f1e"
	type holder struct {
		Public  secret.Text
		private secret.Text
	}
	h := holder{secret.New(canary), secret.New(canary)}
	var log bytes.Buffer
	l := slog.New(slog.NewJSONHandler(&log, nil))
	l.Info("opened", "text", h.Public, "holder", h, "pointer", &h)
	js, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	for name, out := range map[string]string{
		"%v": fmt.Sprintf("%v %+v", h, h), "%#v": fmt.Sprintf("%#v", h), "%s": fmt.Sprintf("%s", any(h.private)),
		"%x": fmt.Sprintf("%x", any(h)), "%q": fmt.Sprintf("%q", any(h)), "json": string(js), "log": log.String(),
	} {
		if strings.Contains(out, canary) || strings.Contains(out, fmt.Sprintf("%x", canary)) {
			t.Errorf("%s prints the secret: %s", name, out)
		}
	}
	if h.Public.Reveal() != canary || h.Public.IsZero() || !(secret.Text{}).IsZero() {
		t.Error("the secret is not kept")
	}
}
