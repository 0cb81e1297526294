package nats

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/prism-gateway/prism/shared/fault"
)

const (
	// maxQueued is how many calls wait to be sent before more wait with their callers.
	maxQueued = 256
	// maxWait bounds a call that has no deadline.
	maxWait = 5 * time.Second
	// silence is how long a server that says nothing is asked for a sign of life; after two without one it is gone.
	silence = 10 * time.Second
)

// line is one connection. It is not used again when it has broken, and what was sent on it then fails: the SDK's own way,
// to send on the next connection what it had taken for this one, would tell callers less than the truth.
type line struct {
	nc    *nats.Conn
	inbox string // what the subjects of answers begin with
	queue chan *call
	ended chan struct{} // closed when it has broken

	mu      sync.Mutex // guards what follows
	waiting map[string]*call
	count   uint64
	denied  error // the newest denial by the server's access rules

	setup  chan struct{}          // held by who prepares
	target atomic.Pointer[target] // the stream of the items; nil until it is known to be there
	parts  atomic.Pointer[target] // that of the parts of large values
}

// call is one request. Whoever takes it first, the sender or its caller who gives up, decides whether it was sent. A caller
// may be gone before the sender has done with the message, so its bytes are nobody else's.
type call struct {
	msg    *nats.Msg
	token  string // of its answer; guarded by the line's mu
	left   bool   // its caller has gone; guarded by the line's mu
	taken  atomic.Bool
	done   chan struct{} // closed when answer or err is set
	answer *nats.Msg
	err    *fault.Fault
}

func (c *call) take() bool { return c.taken.CompareAndSwap(false, true) }

func (c *call) end(answer *nats.Msg, err *fault.Fault) {
	c.answer, c.err = answer, err
	close(c.done)
}

// dial is the opening of a connection, which all who need one wait for.
type dial struct {
	done chan struct{} // closed when line or err is set
	line *line
	err  *fault.Fault
}

// connected returns a connection, and opens one when there is none.
func (i *Instance) connected(ctx context.Context) (*line, *fault.Fault) {
	if ctx.Err() != nil {
		return nil, unsent(ctx.Err())
	}
	i.mu.Lock()
	select {
	case <-i.stop:
		i.mu.Unlock()
		return nil, closedFault()
	default:
	}
	if i.line != nil && !i.line.broken() {
		defer i.mu.Unlock()
		return i.line, nil
	}
	d := i.dialing
	if d == nil {
		d = &dial{done: make(chan struct{})}
		i.dialing = d
		i.running.Go(func() { i.dial(d) })
	}
	i.mu.Unlock()
	select {
	case <-d.done:
		return d.line, d.err
	case <-ctx.Done():
		return nil, unsent(ctx.Err())
	}
}

func (i *Instance) dial(d *dial) {
	l, err := i.open()
	i.mu.Lock()
	i.dialing = nil
	switch {
	case err != nil:
		d.err = dialFault(err)
	case i.living.Err() != nil:
		l.close()
		d.err = closedFault()
	default:
		i.line, d.line = l, l
		i.running.Go(l.send)
	}
	i.mu.Unlock()
	close(d.done)
}

// dialer opens connections until the instance is closed.
type dialer struct {
	net.Dialer
	living context.Context
}

// Dial opens a connection.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(d.living, network, address)
}

// open opens a connection to one of the servers.
func (i *Instance) open() (*line, error) {
	l := &line{
		inbox: nats.NewInbox() + ".", queue: make(chan *call, maxQueued), ended: make(chan struct{}), waiting: map[string]*call{}, setup: make(chan struct{}, 1),
	}
	scheme := "nats://"
	if i.secure {
		scheme = "tls://"
	}
	options := nats.GetDefaultOptions()
	for _, endpoint := range i.config.Endpoints {
		options.Servers = append(options.Servers, scheme+endpoint)
	}
	options.Name, options.Timeout = "prism", i.config.DialTimeout
	options.CustomDialer = dialer{net.Dialer{Timeout: i.config.DialTimeout, KeepAlive: 30 * time.Second}, i.living}
	options.AllowReconnect = false
	options.PingInterval, options.MaxPingsOut = silence, 2
	options.FlusherTimeout = maxWait
	options.AsyncErrorCB = l.refused
	options.ClosedCB = func(nc *nats.Conn) { l.breaks(nc.LastError()) }
	if err := i.credential(&options); err != nil {
		return nil, err
	}
	if i.secure {
		var err error
		if options.TLSConfig, err = i.tls(); err != nil {
			return nil, err
		}
		options.Secure = true
	}
	nc, err := options.Connect()
	if err != nil {
		return nil, err
	}
	l.nc = nc
	answers, err := nc.Subscribe(l.inbox+"*", l.answered)
	if err == nil {
		err = answers.SetPendingLimits(-1, -1)
	}
	if err == nil {
		err = nc.FlushTimeout(i.config.DialTimeout)
	}
	if err == nil {
		err = l.denial(l.inbox + "*") // else each call would wait in vain
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return l, nil
}

// credential says who the proxy is: by a user's JWT and the seed that belongs to it, by name and password, or by a token.
func (i *Instance) credential(o *nats.Options) error {
	cfg := i.config
	switch {
	case !cfg.Token.IsZero() && !cfg.PrivateKey.IsZero():
		key, err := nkeys.FromSeed([]byte(cfg.PrivateKey.Reveal()))
		if err != nil {
			return errors.New("the private key is no seed of an nkey")
		}
		o.UserJWT = func() (string, error) { return cfg.Token.Reveal(), nil }
		o.SignatureCB = key.Sign
	case cfg.Username != "":
		o.User, o.Password = cfg.Username, cfg.Password.Reveal()
	case !cfg.Token.IsZero():
		o.Token = cfg.Token.Reveal()
	default:
		o.Token = cfg.Password.Reveal()
	}
	return nil
}

func (l *line) broken() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}

// close breaks the connection and waits until all calls have failed.
func (l *line) close() {
	l.nc.Close()
	<-l.ended
}

// breaks is called by the SDK, once, when the connection is closed for good.
func (l *line) breaks(why error) {
	close(l.ended)
	l.mu.Lock()
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, c := range waiting {
		c.end(nil, brokenFault(why))
	}
}

// refused is called by the SDK for what the server tells besides answers. A call whose subject is forbidden gets none.
func (l *line) refused(_ *nats.Conn, _ *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	var hit []*call
	l.mu.Lock()
	l.denied = err
	for token, c := range l.waiting {
		if strings.Contains(err.Error(), `"`+c.msg.Subject+`"`) || strings.Contains(err.Error(), `"`+l.inbox) {
			hit = append(hit, c)
			delete(l.waiting, token)
		}
	}
	l.mu.Unlock()
	for _, c := range hit {
		c.end(nil, deniedFault(err))
	}
}

// answered is called by the SDK for each answer.
func (l *line) answered(m *nats.Msg) {
	l.mu.Lock()
	token := m.Subject[len(l.inbox):]
	c := l.waiting[token]
	delete(l.waiting, token)
	l.mu.Unlock()
	if c != nil {
		c.end(m, nil)
	}
}

// send sends what is queued until the connection breaks.
func (l *line) send() {
	for {
		select {
		case <-l.ended:
			return
		case c := <-l.queue:
			if c.take() {
				l.publish(c)
			}
		}
	}
}

func (l *line) publish(c *call) {
	l.mu.Lock()
	if l.waiting == nil {
		l.mu.Unlock()
		c.end(nil, brokenFault(nil).WithOutcome(fault.NotApplied))
		return
	}
	if c.left {
		l.mu.Unlock()
		return
	}
	l.count++
	token := strconv.FormatUint(l.count, 36)
	l.waiting[token], c.token = c, token
	l.mu.Unlock()
	c.msg.Reply = l.inbox + token
	err := l.nc.PublishMsg(c.msg)
	if err == nil {
		return
	}
	l.mu.Lock()
	mine := l.waiting[token] == c
	delete(l.waiting, token)
	l.mu.Unlock()
	if mine {
		c.end(nil, publishFault(err))
	}
}

// do sends a request and waits for its answer. The fault says whether it was sent.
func (l *line) do(ctx context.Context, m *nats.Msg) (*nats.Msg, *fault.Fault) {
	if ctx.Err() != nil {
		return nil, unsent(ctx.Err())
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, maxWait)
		defer cancel()
	}
	c := &call{msg: m, done: make(chan struct{})}
	select {
	case l.queue <- c:
	case <-l.ended:
		return nil, brokenFault(nil).WithOutcome(fault.NotApplied)
	case <-ctx.Done():
		return nil, unsent(ctx.Err())
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if c.take() {
			return nil, unsent(ctx.Err())
		}
		l.forget(c)
		return nil, late(ctx.Err())
	case <-l.ended:
		if c.take() {
			return nil, brokenFault(nil).WithOutcome(fault.NotApplied)
		}
		<-c.done // breaks or publish ends it
	}
	if c.err != nil {
		return nil, c.err
	}
	if c.answer.Header.Get("Status") == "503" {
		return nil, noStream(l)
	}
	return c.answer, nil
}

// forget gives up waiting for an answer.
func (l *line) forget(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, c.token)
	c.left = true
}

// rest waits.
func (l *line) rest(ctx context.Context, wait time.Duration) *fault.Fault {
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return late(ctx.Err())
	case <-l.ended:
		return brokenFault(nil)
	}
}

// flush waits until the server has taken all that was sent.
func (l *line) flush(ctx context.Context) *fault.Fault {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	switch err := l.nc.FlushWithContext(ctx); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return late(ctx.Err())
	default:
		return brokenFault(err)
	}
}

// denial is the newest denial by the server's access rules if it is of a subject, or nil.
func (l *line) denial(subject string) error {
	l.mu.Lock()
	denied := l.denied
	l.mu.Unlock()
	for _, err := range []error{l.nc.LastError(), denied} { // the SDK calls for a denial a little later than it knows of it
		if errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+subject+`"`) {
			return err
		}
	}
	return nil
}
