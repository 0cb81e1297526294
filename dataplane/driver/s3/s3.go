// Package s3 keeps items as objects in a bucket of a store that speaks S3, such as Amazon S3.
//
// Each item is one object, which begins with a random number, its version. So no two have one entity tag, also when
// somebody writes the same value again. A write reads what is there and then puts the new object on the condition that the
// tag is still that one, so what two proxies do at once is put in order by the store. A store that takes such conditions
// without keeping them would lose writes, so each instance tries that once, before its first call. The tag itself is no
// version: a store that reads it before it opens the object may give the former one's.
//
// Stores differ in deletions: Amazon S3 checks and deletes in one step, others check first and then delete whatever is there,
// or do not check. So a removed item leaves a small object, which is put as an item is, unless a setting says that the store
// can do better. Nothing removes those objects: a deletion that comes late would take a newer item with it.
//
// What a store does not have is not put on top of it: objects do not expire, are not watched, and cannot be changed together.
package s3

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/prism-gateway/prism/dataplane/driver"
	"github.com/prism-gateway/prism/shared/fault"
)

// Driver returns the driver.
func Driver() driver.Driver { return s3Driver{} }

type s3Driver struct{}

func (s3Driver) Type() string { return "s3" }

func (s3Driver) Interfaces() []string {
	return []string{"keyvalue", "keyvalue.large", "keyvalue.list", "keyvalue.scan", "keyvalue.version"}
}

const (
	// defaultConnections is for an instance that is told no number.
	defaultConnections = 64
	// maxWait bounds a call that has no deadline, except for reading and writing large values.
	maxWait = 30 * time.Second
)

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$`)
	regionName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

// Open needs one endpoint, host:port. Settings: bucket, which must be there (default prism); prefix, what the names of all
// objects begin with, up to a slash (default none); region, for the signatures (default us-east-1); addressing, path or
// virtual, that is whether the bucket stands in the path or in the host's name (default path); tls, true or false (default
// true); ca_file, a file with the certificates that the server's is verified by, instead of the system's; conditional_delete,
// true where the store checks If-Match and deletes in one step (default false, see the package). The username is the id of
// an access key, the password its secret, and the token that of temporary keys; without a username calls are not signed.
func (s3Driver) Open(cfg driver.Config) (driver.Instance, error) {
	if len(cfg.Endpoints) != 1 {
		return nil, fmt.Errorf("backend %s: s3 takes one endpoint", cfg.Name)
	}
	host, _, err := net.SplitHostPort(cfg.Endpoints[0])
	if err != nil {
		return nil, fmt.Errorf("backend %s: the endpoint is not host:port", cfg.Name) // without it: the text reaches teams
	}
	i := &Instance{config: cfg, bucket: "prism", host: host, trying: make(chan struct{}, 1), now: cfg.Now}
	if i.now == nil {
		i.now = time.Now
	}
	if i.config.DialTimeout <= 0 {
		i.config.DialTimeout = 5 * time.Second
	}
	if i.config.MaxConnections <= 0 {
		i.config.MaxConnections = defaultConnections
	}
	options, err := i.settings()
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", cfg.Name, err)
	}
	i.transport = &http.Transport{
		DialContext:    (&net.Dialer{Timeout: i.config.DialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		DialTLSContext: i.dialTLS, MaxConnsPerHost: i.config.MaxConnections, MaxIdleConnsPerHost: i.config.MaxConnections,
		IdleConnTimeout: 90 * time.Second, DisableCompression: true,
	}
	options.HTTPClient = &http.Client{Transport: i.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	i.client = s3.New(options)
	i.living, i.cancel = context.WithCancel(context.Background())
	i.running.Go(i.sweeper)
	return i, nil
}

// settings reads the settings.
func (i *Instance) settings() (s3.Options, error) {
	o := s3.Options{
		Region: "us-east-1", UsePathStyle: true, Credentials: aws.AnonymousCredentials{}, DisableS3ExpressSessionAuth: aws.Bool(true),
		// A write that the SDK sends again, after one whose answer was lost, would fail its own condition.
		Retryer: aws.NopRetryer{},
		// Records have sums of their own. Those of the SDK are unknown to many stores.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		ContinueHeaderThresholdBytes: -1,
	}
	if i.config.Username != "" {
		o.Credentials = credentials.NewStaticCredentialsProvider(i.config.Username, i.config.Password.Reveal(), i.config.Token.Reveal())
	}
	scheme := "https://"
	for name, value := range i.config.Settings {
		ok, want := true, ""
		switch name {
		case "bucket":
			i.bucket, ok, want = value, bucketName.MatchString(value), "3 to 63 of a-z, 0-9, '.' and '-'"
		case "prefix":
			i.prefix, want = strings.TrimSuffix(value, "/")+"/", "1 to 64 of A-Z, a-z, 0-9, '.', '_', '-', and '/' between them"
			ok = prefixName.MatchString(value) && !strings.Contains("/"+i.prefix, "//") && !strings.Contains("/"+i.prefix, "/.")
		case "region":
			o.Region, ok, want = value, regionName.MatchString(value), "a name such as eu-central-1"
		case "addressing":
			o.UsePathStyle, ok, want = value == "path", value == "path" || value == "virtual", "path or virtual"
		case "tls":
			if ok, want = value == "true" || value == "false", "true or false"; value == "false" {
				scheme = "http://"
			}
		case "ca_file":
			i.caFile = value
		case "conditional_delete":
			i.deletes, ok, want = value == "true", value == "true" || value == "false", "true or false"
		default:
			return o, fmt.Errorf("unknown setting %q", name)
		}
		if !ok {
			return o, fmt.Errorf("setting %s %q: want %s", name, value, want)
		}
	}
	if i.caFile != "" && scheme == "http://" {
		return o, errors.New("setting ca_file asks for TLS, which setting tls forbids")
	}
	o.BaseEndpoint = aws.String(scheme + i.config.Endpoints[0])
	return o, nil
}

// dialTLS opens a connection. The file of certificates is read anew for each, so that it can be replaced.
func (i *Instance) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if i.caFile != "" {
		pem, err := os.ReadFile(i.caFile)
		if err != nil {
			return nil, err
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("the file holds no certificate")
		}
	}
	d := tls.Dialer{NetDialer: &net.Dialer{KeepAlive: 30 * time.Second}, Config: c}
	ctx, cancel := context.WithTimeout(ctx, i.config.DialTimeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// Instance is one open bucket.
type Instance struct {
	config    driver.Config
	bucket    string
	prefix    string // of the names of all objects; empty or with a slash at its end
	host      string
	caFile    string
	deletes   bool // items are removed by conditional deletions
	now       func() time.Time
	client    *s3.Client
	transport *http.Transport

	trying  chan struct{} // held by who tries what the store does with conditions
	trusted atomic.Bool   // that was tried, and the store keeps them

	mu      sync.Mutex // guards closed, and the first of running's calls
	closed  bool
	living  context.Context // ends when Close begins
	cancel  context.CancelFunc
	running sync.WaitGroup // calls, and the sweeper
}

// Ping asks for the bucket.
func (i *Instance) Ping(ctx context.Context) error {
	c, f := i.begin(ctx, maxWait)
	if f != nil {
		return f.WithOutcome("")
	}
	defer c.end()
	if _, err := i.client.HeadBucket(c.ctx, &s3.HeadBucketInput{Bucket: &i.bucket}); err != nil {
		return c.fault(err).WithOutcome("")
	}
	return nil
}

// Close ends the calls under way, which fail, and closes the connections.
func (i *Instance) Close() error {
	i.mu.Lock()
	i.closed = true
	i.mu.Unlock()
	i.cancel()
	i.running.Wait()
	i.transport.CloseIdleConnections()
	return nil
}

// trust tries once whether the store keeps the conditions of writes.
func (c *call) trust() *fault.Fault {
	i := c.i
	if i.trusted.Load() {
		return nil
	}
	select {
	case i.trying <- struct{}{}:
		defer func() { <-i.trying }()
	case <-c.ctx.Done():
		return c.ended()
	}
	if i.trusted.Load() {
		return nil
	}
	object := i.prefix + "_probe/" + strings.ToLower(rand.Text())
	tag, err := c.put(object, []byte(object), "")
	if err != nil {
		return refused(err)
	}
	const other = `"00000000000000000000000000000000"`
	for _, try := range []struct {
		condition string
		deletes   bool
		do        func() error
	}{
		{"If-None-Match", false, func() error { _, err := c.put(object, nil, ""); return err }},
		{"If-Match", false, func() error { _, err := c.put(object, nil, other); return err }},
		{"If-Match of deletions", true, func() error { return c.remove(object, other) }},
	} {
		if try.deletes && !i.deletes {
			continue
		}
		switch err := try.do(); {
		case errors.Is(err, errOvertaken):
		case err == nil, errors.Is(err, errUnsupported):
			c.remove(object, "")
			return fault.Newf(fault.FailedPrecondition, fault.Backend, "the store does not keep the condition %s; without it writes would be lost", try.condition).
				WithOutcome(fault.NotApplied)
		default:
			return refused(err)
		}
	}
	if !i.deletes {
		tag = ""
	}
	if err := c.remove(object, tag); err != nil {
		return refused(err)
	}
	i.trusted.Store(true)
	return nil
}

// refused is the fault of a write that was not begun since trying the store failed.
func refused(err error) *fault.Fault {
	return fault.From(unsupported(err)).WithOutcome(fault.NotApplied)
}
