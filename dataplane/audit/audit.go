// Package audit writes down every access to data, also those that are refused: buffered and bounded, and refused itself when
// it cannot be written.
package audit

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/prism-gateway/prism/shared/auditchain"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/telemetry"
)

const (
	defaultBuffer = 100_000
	flushEvery    = 100 * time.Millisecond // what nobody waits for
	firstRetry    = 100 * time.Millisecond
	lastRetry     = 5 * time.Second
	mostBatch     = 10_000
)

// sink keeps records for good.
type sink interface {
	// Open finds the newest record of the proxy's chain.
	Open(ctx context.Context) (number uint64, hash string, err error)
	// Write keeps lines, all or none, and returns when they are safe. It is called by one goroutine.
	Write(ctx context.Context, lines [][]byte) error
	// Close ends it.
	Close() error
}

// Config makes a Log.
type Config struct {
	// Proxy is the proxy's id, which names the chain. Required.
	Proxy string
	// Sink is where records go. Required.
	Sink sink
	// Buffer is how many may wait to be written; 0 means 100,000.
	Buffer int
	// Logger is required.
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Log takes records. Its methods may be called concurrently.
type Log struct {
	cfg     Config
	pending atomic.Int64 // reserved, or waiting to be written
	failing atomic.Bool
	wake    chan struct{}

	mu      sync.Mutex // guards what follows
	queue   []entry
	writing time.Time // when the calls that are being written came; zero: none is

	written, refused, failures, dropped prometheus.Counter
}

// entry is a record that waits; done, where somebody waits, gets nil when it is safe, or why it never will be.
type entry struct {
	record *auditchain.Record
	done   chan error
}

// New makes a Log. It does no I/O.
func New(cfg Config) (*Log, error) {
	if cfg.Proxy == "" || cfg.Sink == nil || cfg.Logger == nil {
		return nil, errors.New("audit: Proxy, Sink and Logger are required")
	}
	cfg.Buffer = cmp.Or(cfg.Buffer, defaultBuffer)
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "prism_audit_" + name, Help: help})
	}
	l := &Log{
		cfg: cfg, wake: make(chan struct{}, 1),
		written:  counter("records_total", "Accesses that were recorded."),
		refused:  counter("refused_total", "Calls that were refused because they could not be recorded."),
		failures: counter("write_failures_total", "Times that records could not be written; they are tried again."),
		dropped:  counter("dropped_total", "Accesses that were not recorded, because the proxy stopped while the sink failed."),
	}
	l.failing.Store(true) // until it is known where the chain ended
	if cfg.Registerer == nil {
		return l, nil
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "prism_audit_waiting", Help: "Accesses that are under way or wait to be recorded."},
		func() float64 { return float64(l.pending.Load()) })
	oldest := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "prism_audit_oldest_seconds", Help: "How long the oldest access that is not recorded yet has waited; 0 when none waits."}, l.oldest)
	for _, c := range []prometheus.Collector{l.written, l.refused, l.failures, l.dropped, waiting, oldest} {
		if err := cfg.Registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// oldest is how long, in seconds, the record has waited that has waited longest.
func (l *Log) oldest() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := l.writing
	if since.IsZero() && len(l.queue) > 0 {
		since = l.queue[0].record.Time
	}
	if since.IsZero() {
		return 0
	}
	return max(0, time.Since(since).Seconds())
}

// Slot is the place of one record, which ends with Write, WriteThrough or Cancel, once.
type Slot struct{ log *Log }

// Reserve takes the place of a record before its call is made, so that nothing is done that cannot be recorded. The error is
// a fault.
func (l *Log) Reserve() (Slot, error) {
	if n := l.pending.Add(1); n > int64(l.cfg.Buffer) || l.failing.Load() {
		l.pending.Add(-1)
		l.refused.Inc()
		return Slot{}, unavailable(nil)
	}
	return Slot{l}, nil
}

func unavailable(cause error) *fault.Fault {
	return fault.Wrap(cause, fault.Unavailable, fault.AuditUnavailable, "the access cannot be recorded, and so it is refused").
		WithOutcome(fault.NotApplied).WithRetry(time.Second)
}

// Cancel gives the place back: there is nothing to record.
func (s Slot) Cancel() { s.log.pending.Add(-1) }

// Write records, a moment later. It does not wait.
func (s Slot) Write(r *auditchain.Record) { s.log.add(entry{record: r}) }

// WriteThrough records and returns when the record is safe. The error, when ctx ends before, is a fault; the record is still
// written if that is possible.
func (s Slot) WriteThrough(ctx context.Context, r *auditchain.Record) error {
	done := make(chan error, 1)
	s.log.add(entry{record: r, done: done})
	select {
	case err := <-done:
		if err != nil {
			return unavailable(err)
		}
		return nil
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (l *Log) add(e entry) {
	l.mu.Lock()
	l.queue = append(l.queue, e)
	hurry := e.done != nil || len(l.queue) >= mostBatch
	l.mu.Unlock()
	if !hurry {
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx is done, and then what is left.
func (l *Log) Run(ctx context.Context) error {
	defer l.cfg.Sink.Close() // what was to be written is
	chain, ok := l.open(ctx)
	if !ok {
		return nil
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRetry)
			defer cancel()
			l.flush(last, chain)
			if n := l.pending.Load(); n > 0 {
				l.dropped.Add(float64(n))
				l.cfg.Logger.Error("accesses to data were not recorded before the proxy stopped", "records", n)
			}
			return nil
		case <-tick.C:
		case <-l.wake:
		}
		l.flush(ctx, chain)
	}
}

// open asks the sink where the chain ended, until it answers.
func (l *Log) open(ctx context.Context) (*auditchain.Chain, bool) {
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		number, hash, err := l.cfg.Sink.Open(ctx)
		if err == nil {
			if f, ok := l.cfg.Sink.(*Files); ok && f.Cut() > 0 {
				l.cfg.Logger.Warn("the last record of an access was not whole and was removed: its writer was stopped while it wrote", "bytes", f.Cut(), "after_record", number)
			}
			l.failing.Store(false)
			return auditchain.New(l.cfg.Proxy, number, hash), true
		}
		l.trouble(err)
		select {
		case <-ctx.Done():
			return nil, false
		case <-time.After(retry):
		}
	}
}

func (l *Log) trouble(err error) {
	l.failures.Inc()
	l.failing.Store(true)
	l.cfg.Logger.Error("accesses to data cannot be recorded: calls are refused", telemetry.Error(err))
}

// flush writes all that waits.
func (l *Log) flush(ctx context.Context, chain *auditchain.Chain) {
	for {
		l.mu.Lock()
		n := min(len(l.queue), mostBatch)
		batch := l.queue[:n:n]
		l.queue = l.queue[n:]
		if len(l.queue) == 0 {
			l.queue = nil
		}
		if l.writing = (time.Time{}); n > 0 {
			l.writing = batch[0].record.Time
		}
		l.mu.Unlock()
		if n == 0 || !l.write(ctx, chain, batch) {
			return
		}
	}
}

// write keeps a batch, trying until ctx is done.
func (l *Log) write(ctx context.Context, chain *auditchain.Chain, batch []entry) bool {
	lines := make([][]byte, 0, len(batch))
	for i, e := range batch {
		text, err := chain.Append(nil, e.record)
		if err == nil {
			lines = append(lines, text)
			continue
		}
		l.cfg.Logger.Error("a record of an access cannot be written down", telemetry.Error(err)) // it is plain text and numbers: a defect
		l.dropped.Inc()
		if e.done != nil {
			e.done <- err
			batch[i].done = nil
		}
	}
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		err := l.cfg.Sink.Write(ctx, lines)
		if err == nil {
			break
		}
		l.trouble(err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retry):
		}
	}
	if l.failing.Swap(false) {
		l.cfg.Logger.Info("accesses to data are recorded again")
	}
	l.written.Add(float64(len(lines)))
	l.pending.Add(-int64(len(batch)))
	for _, e := range batch {
		if e.done != nil {
			e.done <- nil
		}
	}
	return true
}
