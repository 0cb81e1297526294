package auditchain_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/auditchain"
)

func TestARecordIsNeverLongerThanAReaderTakes(t *testing.T) {
	chain := auditchain.New("p", 0, "")
	var file []byte
	var err error
	for _, text := range []string{strings.Repeat("<", 100_000), strings.Repeat("\x00", 100_000), strings.Repeat("ü", 100_000), ""} {
		if file, err = chain.Append(file, &auditchain.Record{Time: time.Unix(1, 0), Principal: text, Session: text, Namespace: text, Operation: text, Backend: text, Reason: text, RequestID: text}); err != nil {
			t.Fatal(err)
		}
	}
	v := auditchain.Verifier{}
	if _, err := v.Read(bytes.NewReader(file), nil); err != nil || v.Count != 4 {
		t.Errorf("%d records, %v", v.Count, err)
	}
}

// FuzzVerify looks for files that are whole and were not written by a chain.
func FuzzVerify(f *testing.F) {
	chain := auditchain.New("p", 0, "")
	var file []byte
	for n := range 3 {
		file, _ = chain.Append(file, &auditchain.Record{Time: time.Unix(int64(n), 0), Result: "OK"})
	}
	f.Add(file)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		v := auditchain.Verifier{}
		whole, err := v.Read(bytes.NewReader(text), nil)
		if whole > int64(len(text)) || err == nil && whole != int64(len(text)) {
			t.Errorf("%d of %d bytes are whole, %v", whole, len(text), err)
		}
		if number, hash := v.State(); errors.Is(err, auditchain.ErrTorn) && v.Count > 0 && (number == 0 || hash == "") {
			t.Errorf("after %d records: %d, %q", v.Count, number, hash)
		}
	})
}
