package certs_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"

	"github.com/prism-gateway/prism/shared/certs"
)

var errOther = errors.New("it is another program")

func logger(l *log) *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// SE-12: a private key is in nothing that anybody prints.
func TestKeysAreNowhere(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	own := issue(t, ca, program("proxy"))
	files := filed(t, dir, own)
	w := load(t, ofFiles(files))
	w.run(t)
	s := serve(t, w.Server(certs.ServerConfig{}))
	var said []string
	say := func(text string) { said = append(said, text) }
	key := w.Certificate().PrivateKey.(*ecdsa.PrivateKey)
	number, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []string{files.GetKeyFile(), files.GetCertFile(), files.GetCaFile()} {
		before := w.metric(t, "prism_certs_failures_total")
		was, err := os.ReadFile(damage)
		if err != nil {
			t.Fatal(err)
		}
		put(t, damage, []byte(strings.Replace(own.Key.Reveal(), "\n", "\nx", 2)))
		eventually(t, "it is told", func() bool { return w.metric(t, "prism_certs_failures_total") > before })
		fresh, err := certs.New(certs.Config{Name: "other", Certificates: ofFiles(files), Logger: logger(w.log)})
		if err != nil {
			t.Fatal(err)
		}
		say(fmt.Sprint(fresh.Load(t.Context())))
		put(t, damage, was)
	}
	if _, err := s.dial(w.Client(takes("spiffe://example.org/nobody"))); err == nil {
		t.Fatal("anybody is taken for nobody")
	} else {
		say(fmt.Sprintf("%v %+v %#v", err, err, err))
	}
	say(fmt.Sprint(<-s.refused))
	idle := load(t, ofFiles(files)) // printing one that runs would be a race
	say(fmt.Sprintf("%v %+v %#v", idle.Source, idle.Source, idle.Source))
	say(fmt.Sprintf("%v %+v %#v", own.Key, own, own.Key))
	func() {
		defer func() { say(fmt.Sprint(recover())) }()
		panic(idle.Source)
	}()
	_ = w.Run(cancelled()) // a second watch of the same ends at once
	say(w.log.String())
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		var b strings.Builder
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
		say(b.String())
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 3 {
		t.Errorf("files were left: %v, %v", names, err)
	}
	if len(said) < 10 {
		t.Fatalf("only %d texts", len(said))
	}
	for _, text := range said {
		for _, canary := range []string{keyText(own), hex.EncodeToString(number), fmt.Sprint(number), strings.Trim(fmt.Sprint(number[8:24]), "[]"), "PRIVATE KEY-----\n"} {
			if strings.Contains(text, canary) {
				t.Errorf("the key is in %s", text)
			}
		}
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
