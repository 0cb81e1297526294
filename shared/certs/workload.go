package certs

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	bootstrapv1 "github.com/prism-gateway/prism/protos/prism/bootstrap/v1"
)

// workload is a SPIFFE Workload API.
type workload struct {
	address string
	now     func() time.Time
}

func newWorkload(at *bootstrapv1.WorkloadApi, now func() time.Time) (*workload, error) {
	address := at.GetAddress()
	if address == "" {
		address, _ = workloadapi.GetDefaultAddress()
	}
	if err := workloadapi.ValidateAddress(address); err != nil {
		return nil, fmt.Errorf("certs: the address of the SPIFFE Workload API, or SPIFFE_ENDPOINT_SOCKET: %w", err)
	}
	return &workload{address: address, now: now}, nil
}

func (w *workload) patient() bool { return true }

func (w *workload) connect(ctx context.Context) (*workloadapi.Client, error) {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(w.address))
	if err != nil {
		return nil, fmt.Errorf("the SPIFFE Workload API: %w", err)
	}
	return client, nil
}

// load asks for the identity of now.
func (w *workload) load(ctx context.Context) (*material, error) {
	client, err := w.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	got, err := client.FetchX509Context(ctx)
	if err != nil {
		return nil, fmt.Errorf("the SPIFFE Workload API: %w", err)
	}
	return w.material(got)
}

// watch keeps a stream open, on which the other side tells of each change.
func (w *workload) watch(ctx context.Context, _ *material, take func(*material, error) error) error {
	client, err := w.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		// It tries again by itself, but not when the other side cancels, as one does that is being stopped.
		_ = client.WatchX509Context(ctx, &watcher{ctx, w, take}) // the watcher has been told
		if !pause(ctx, time.Second) {
			return nil
		}
	}
}

// watcher takes what a stream brings.
type watcher struct {
	ctx  context.Context
	w    *workload
	take func(*material, error) error
}

// OnX509ContextUpdate takes a new identity.
func (w *watcher) OnX509ContextUpdate(got *workloadapi.X509Context) {
	_ = w.take(w.w.material(got)) // it has been told
}

// OnX509ContextWatchError tells of a stream that broke.
func (w *watcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() == nil {
		_ = w.take(nil, fmt.Errorf("the SPIFFE Workload API: %w", err)) // which tells it
	}
}

// material is the first identity, which is the default one, with the authorities of each trust domain.
func (w *workload) material(got *workloadapi.X509Context) (*material, error) {
	svid := got.DefaultSVID()
	own := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	m := &material{own: own, loadedAt: w.now(), domains: map[string]map[[sha256.Size]byte]bool{}}
	var parts [][]byte
	for _, c := range svid.Certificates {
		own.Certificate = append(own.Certificate, c.Raw)
		parts = append(parts, c.Raw)
	}
	for _, bundle := range got.Bundles.Bundles() { // in the order of their names
		domain := bundle.TrustDomain().Name()
		roots := map[[sha256.Size]byte]bool{}
		parts = append(parts, []byte(domain))
		for _, c := range bundle.X509Authorities() {
			roots[sha256.Sum256(c.Raw)] = true
			m.authorities = append(m.authorities, c)
			parts = append(parts, c.Raw)
		}
		m.domains[domain] = roots
	}
	if len(m.authorities) == 0 {
		return nil, errors.New("the SPIFFE Workload API: gives no authorities")
	}
	m.trust()
	m.sum = sum(parts...)
	return m, nil
}
