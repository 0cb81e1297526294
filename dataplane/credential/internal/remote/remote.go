// Package remote is what providers have in common that ask a server of a cloud by HTTP: how they reach it, and what its
// answers mean to a Source.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/prism-gateway/prism/dataplane/credential"
)

// maxAnswer bounds an answer in bytes: that of a secret, which is a few lines, or of a login.
const maxAnswer = 1 << 20

// Client makes a client that follows no redirect and reads no endless answer. base sends its requests; nil means TLS with
// the system's authorities, through the proxy that the environment names.
func Client(base http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     Transport(base),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Transport makes the part of Client that sends requests, for SDKs that make clients themselves.
func Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: 10 * time.Second,
			IdleConnTimeout:       90 * time.Second,
			MaxIdleConnsPerHost:   4,
			ForceAttemptHTTP2:     true,
		}
	}
	return bounded{base}
}

// bounded cuts answers that are longer than any good one.
type bounded struct{ base http.RoundTripper }

// RoundTrip does one request.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	Bound(response)
	return response, nil
}

// Bound makes an answer's body end with an error when it is longer than any good one.
func Bound(response *http.Response) {
	response.Body = http.MaxBytesReader(nil, response.Body, maxAnswer)
}

// CloseIdleConnections closes what waits for another request.
func (b bounded) CloseIdleConnections() {
	if c, ok := b.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Endpoint refuses what is no URL of a server, and one without TLS unless the server is on this machine. It reports
// whether there is TLS.
func Endpoint(endpoint string) (secure bool, err error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false, errors.New("the endpoint is no URL of a server")
	}
	switch u.Scheme {
	case "https":
		return true, nil
	case "http":
		ip, err := netip.ParseAddr(u.Hostname())
		if u.Hostname() == "localhost" || err == nil && ip.IsLoopback() {
			return false, nil
		}
		return false, fmt.Errorf("endpoint %q: without TLS only a server on this machine is asked", endpoint)
	}
	return false, fmt.Errorf("endpoint %q: want https://", endpoint)
}

// Answered is what an answer means that is no success: by its status, and told with the server's word for it, such as
// AccessDenied. throttled says that it means so whatever its status is.
func Answered(status int, word string, throttled bool) error {
	text := Answer(status, word)
	switch {
	case throttled || status == http.StatusTooManyRequests:
		return fmt.Errorf("%s: %w", text, credential.ErrThrottled)
	case status >= 400 && status < 500 && status != http.StatusRequestTimeout:
		return fmt.Errorf("%s: %w", text, credential.ErrRefused)
	}
	return errors.New(text)
}

// Answer tells an answer by its status and the server's word for it, when that is one.
func Answer(status int, word string) string {
	if isWord(word) {
		return fmt.Sprintf("the server answered %d %s", status, word)
	}
	return fmt.Sprintf("the server answered %d", status)
}

// isWord reports whether a server's word can be told: it is one, and no text that could hold something else.
func isWord(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_") == ""
}

// ErrAnswer is that the SDK does not understand a server's answer.
var ErrAnswer = errors.New("the server's answer is not understood")

// Unanswered is what to tell of an SDK's error when there was no answer. Those of SDKs may quote what they read, so only
// those of the network, of files and of contexts are told; of others, what they come to.
func Unanswered(err, other error) error {
	var failed *url.Error
	var network *net.OpError
	var file *fs.PathError
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("the server's answer broke off")
	case errors.As(err, &failed):
		return failed
	case errors.As(err, &network):
		return network
	case errors.As(err, &file): // of an identity
		return fmt.Errorf("%w: %w", other, file)
	}
	return other
}
