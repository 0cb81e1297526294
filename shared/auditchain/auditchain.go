// Package auditchain is how accesses to data are written down so that a record that is removed, changed or moved shows: each
// holds its number and the hash of the one before.
//
// A record is one line of JSON, {"hash":…,"record":{…}}. The hash is the SHA-256, in hex, of the bytes of the record as they
// stand in the line, and the next record names it in "previous".
package auditchain

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Record is one access to data, or one that was refused.
type Record struct {
	// Chain names the chain: the proxy's id. Number is the place in it, from 1. Previous is the hash of the record before,
	// empty in the first. A Chain sets them.
	Chain    string `json:"chain"`
	Number   uint64 `json:"number"`
	Previous string `json:"previous"`
	// Time is when the call came, Micros how long it took, in microseconds.
	Time   time.Time `json:"time"`
	Micros int64     `json:"latency_us"`
	// Principal is who called, Kind what kind that is; Session is the session's id.
	Principal string `json:"principal,omitempty"`
	Kind      string `json:"kind"`
	Session   string `json:"session,omitempty"`
	// Namespace and Operation, such as KeyValue/Get, are what was asked for; Backend is what was asked, where it came so far.
	Namespace string `json:"namespace"`
	Operation string `json:"operation"`
	Backend   string `json:"backend,omitempty"`
	// Result is the status, OK when it succeeded; Reason is why not.
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
	// RequestID names the call in logs, Version the configuration of the namespace that decided.
	RequestID string `json:"request_id,omitempty"`
	Version   string `json:"config_version,omitempty"`
}

// maxLine bounds a line: what is longer is no record.
const maxLine = 64 << 10

// maxText bounds a field: JSON may make six times as much of it.
const maxText = 1500

// line is how a record stands in a file.
type line struct {
	Hash   string          `json:"hash"`
	Record json.RawMessage `json:"record"`
}

// Chain makes the lines of one chain. It is used by one goroutine.
type Chain struct {
	name   string
	number uint64
	hash   string
}

// New begins a chain after the record with a number and a hash; 0 and "" begin a new one.
func New(name string, number uint64, hash string) *Chain {
	return &Chain{name: name, number: number, hash: hash}
}

// Append appends the line of a record, and returns the record's hash. Only a record that was appended moves the chain.
func (c *Chain) Append(to []byte, r *Record) ([]byte, error) {
	r.Chain, r.Number, r.Previous = c.name, c.number+1, c.hash
	for _, text := range []*string{&r.Principal, &r.Session, &r.Namespace, &r.Operation, &r.Backend, &r.Reason, &r.RequestID} {
		*text = (*text)[:min(len(*text), maxText)] // a line must never be longer than a reader takes
	}
	body, err := json.Marshal(r)
	if err != nil {
		return to, fmt.Errorf("auditchain: %w", err)
	}
	sum := sha256.Sum256(body)
	c.number, c.hash = r.Number, hex.EncodeToString(sum[:])
	to = append(to, `{"hash":"`...)
	to = append(to, c.hash...)
	to = append(to, `","record":`...)
	to = append(to, body...)
	return append(to, '}', '\n'), nil
}

// Last is the number and the hash of the newest record.
func (c *Chain) Last() (number uint64, hash string) { return c.number, c.hash }

// Damage is where a chain is broken.
type Damage struct {
	// Line is the line, from 1; Number the record's number there, 0 when that cannot be read.
	Line   int
	Number uint64
	// What is wrong.
	What string
}

// Error says it.
func (d *Damage) Error() string {
	if d.Number == 0 {
		return fmt.Sprintf("line %d: %s", d.Line, d.What)
	}
	return fmt.Sprintf("line %d, record %d: %s", d.Line, d.Number, d.What)
}

// Verifier reads a chain, from one file after the other.
type Verifier struct {
	// Chain is its name; Count how many records were read; First and Last are the times of the first and the newest.
	Chain       string
	Count       uint64
	First, Last time.Time

	number uint64
	hash   string
	begun  bool
}

// State is the number and the hash of the last record that was read.
func (v *Verifier) State() (number uint64, hash string) { return v.number, v.hash }

// ErrTorn is that the last line has no end: its writer was stopped while it wrote. All before it is whole.
var ErrTorn = errors.New("the last line is not whole: its writer was stopped while it wrote")

// Read reads what follows. The first record of all may be of any number: what was before it has been archived. A *Damage is
// the first thing that is wrong; ErrTorn that the last line is not whole. each, when set, gets the records; whole is how many
// bytes were read up to the end of the last line that is right.
func (v *Verifier) Read(from io.Reader, each func(*Record)) (whole int64, err error) {
	in := bufio.NewReaderSize(from, maxLine)
	for n := 1; ; n++ {
		text, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(text) == 0:
			return whole, nil
		case errors.Is(err, io.EOF):
			return whole, ErrTorn
		case errors.Is(err, bufio.ErrBufferFull):
			return whole, &Damage{Line: n, What: "it is longer than any record"}
		case err != nil:
			return whole, err
		}
		r, err := v.line(n, text)
		if err != nil {
			return whole, err
		}
		whole += int64(len(text))
		if each != nil {
			each(r)
		}
	}
}

// Line reads the line that follows, without its end, from where there are no files. The error is as Read's.
func (v *Verifier) Line(text []byte) (*Record, error) { return v.line(int(v.Count)+1, text) }

func (v *Verifier) line(n int, text []byte) (*Record, error) {
	var l line
	var r Record
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, &Damage{Line: n, What: "it is no record: " + err.Error()}
	}
	if err := json.Unmarshal(l.Record, &r); err != nil {
		return nil, &Damage{Line: n, What: "it is no record: " + err.Error()}
	}
	sum := sha256.Sum256(l.Record)
	switch {
	case hex.EncodeToString(sum[:]) != l.Hash:
		return nil, &Damage{Line: n, Number: r.Number, What: "it was changed: its hash is another"}
	case v.begun && r.Chain != v.Chain:
		return nil, &Damage{Line: n, Number: r.Number, What: fmt.Sprintf("it belongs to the chain %q, not %q", r.Chain, v.Chain)}
	case v.begun && r.Number > v.number+1:
		return nil, &Damage{Line: n, Number: r.Number, What: fmt.Sprintf("the records from %d to %d before it are missing", v.number+1, r.Number-1)}
	case v.begun && r.Number != v.number+1:
		return nil, &Damage{Line: n, Number: r.Number, What: fmt.Sprintf("it is out of order: after %d comes %d", v.number, v.number+1)}
	case v.begun && r.Previous != v.hash:
		return nil, &Damage{Line: n, Number: r.Number, What: "the record before it is not the one that it followed"}
	case !v.begun && (r.Number == 0 || (r.Number == 1) != (r.Previous == "")):
		return nil, &Damage{Line: n, Number: r.Number, What: "it is no beginning of a chain"}
	}
	if !v.begun {
		v.begun, v.Chain, v.First = true, r.Chain, r.Time
	}
	v.number, v.hash, v.Last = r.Number, l.Hash, r.Time
	v.Count++
	return &r, nil
}
