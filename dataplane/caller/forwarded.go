package caller

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/prism-gateway/prism/dataplane/forward"
	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
	"github.com/prism-gateway/prism/shared/fault"
	"github.com/prism-gateway/prism/shared/principal"
)

// Header is the metadata in which a proxy says whose call it forwards.
const Header = "x-prism-caller-bin"

// hopHeader is that of package forward, which marks forwarded calls.
const hopHeader = forward.HopHeader

const (
	goodFor  = time.Minute      // what is signed
	reuseFor = 30 * time.Second // and how long it is sent again
	mostKept = 10_000           // signatures that are remembered, each way
	domain   = "prism forwarded caller 1\x00"
)

// Identity is a proxy's own certificate with its key.
type Identity struct {
	chain     [][]byte
	key       crypto.Signer
	principal *principal.Principal
}

// NewIdentity makes the identity of the proxy that a certificate names.
func NewIdentity(c *tls.Certificate, self string) (*Identity, error) {
	key, ok := c.PrivateKey.(crypto.Signer)
	if c.Leaf == nil || !ok {
		return nil, errors.New("the certificate has no key to sign with")
	}
	p, err := principal.FromCertificate(c.Leaf)
	if err != nil {
		return nil, err
	}
	if p.Node() != self {
		return nil, errors.New("the certificate names another program than " + self + ": want it as the last segment of the SPIFFE id, or the first part of the common name")
	}
	return &Identity{chain: c.Certificate, key: key, principal: p}, nil
}

// signatures remembers what was signed for whom.
type signatures struct {
	mu   sync.Mutex
	made map[signedFor]signedAs
}

type signedFor struct {
	who *principal.Principal
	to  string
}

type signedAs struct {
	text  string
	until time.Time
}

// Forwarded is the metadata that tells the proxy with the id to whose call it is: what the caller showed, its certificate by
// this proxy's word, its token as it came. from is the caller's context.
func (f *Finder) Forwarded(from context.Context, to string) (metadata.MD, error) {
	md := metadata.MD{}
	for _, key := range []string{authorization, prismToken} {
		if values := metadata.ValueFromIncomingContext(from, key); len(values) > 0 {
			md[key] = values
		}
	}
	who := &of(from).plain
	if who.Principal == nil || f.cfg.Own == nil {
		return md, nil
	}
	text, err := f.sign(who, to)
	if err != nil {
		return nil, err
	}
	md[Header] = []string{text}
	return md, nil
}

func (f *Finder) sign(who *Caller, to string) (string, error) {
	now, key := f.cfg.Now(), signedFor{who.Principal, to}
	f.mine.mu.Lock()
	defer f.mine.mu.Unlock()
	if s, ok := f.mine.made[key]; ok && now.Before(s.until) {
		return s.text, nil
	}
	own, err := f.cfg.Own()
	if err != nil {
		return "", err
	}
	p := who.Principal
	payload, err := proto.Marshal(&controlv1.ForwardedCaller{
		From: f.cfg.Self, To: to, ExpireAt: timestamppb.New(now.Add(goodFor)), Id: p.ID, Teams: p.Teams,
		Certificate: p.Certificate[:], CertificateExpireAt: timestamppb.New(who.ends),
	})
	if err != nil {
		return "", err
	}
	signature, err := own.sign(payload)
	if err != nil {
		return "", err
	}
	out, err := proto.Marshal(&controlv1.SignedCaller{Caller: payload, Signature: signature, Certificates: own.chain})
	if err != nil {
		return "", err
	}
	if f.mine.made == nil || len(f.mine.made) >= mostKept {
		f.mine.made = map[signedFor]signedAs{}
	}
	f.mine.made[key] = signedAs{text: string(out), until: now.Add(reuseFor)}
	return string(out), nil
}

func (i *Identity) sign(payload []byte) ([]byte, error) {
	message := append([]byte(domain), payload...)
	if _, ok := i.key.Public().(ed25519.PublicKey); ok {
		return i.key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return i.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// signedBy returns the caller that the proxy at the other end of the connection names.
func (f *Finder) signedBy(conn *Connection, text string) (*Caller, error) {
	now := f.cfg.Now()
	if known, ok := conn.others.Load(text); ok {
		if k := known.(*named); now.Before(k.until) {
			return &k.Caller, nil
		}
		if _, there := conn.others.LoadAndDelete(text); there {
			conn.nothers.Add(-1)
		}
	}
	k, err := f.verify(conn, text, now)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unauthenticated, fault.CertInvalid, "what a proxy says of the caller is not believed").WithOutcome(fault.NotApplied)
	}
	if conn.nothers.Add(1) > mostKept {
		conn.others.Clear()
		conn.nothers.Store(1)
	}
	conn.others.Store(text, k)
	return &k.Caller, nil
}

// named is a caller that another proxy names, and until when that is good.
type named struct {
	Caller
	until time.Time
}

func (f *Finder) verify(conn *Connection, text string, now time.Time) (*named, error) {
	signed, said := &controlv1.SignedCaller{}, &controlv1.ForwardedCaller{}
	if err := proto.Unmarshal([]byte(text), signed); err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, der := range signed.GetCertificates() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	by, err := f.cfg.Believe(chain)
	if err != nil {
		return nil, err
	}
	if err := check(chain[0].PublicKey, signed.GetCaller(), signed.GetSignature()); err != nil {
		return nil, err
	}
	if err := proto.Unmarshal(signed.GetCaller(), said); err != nil {
		return nil, err
	}
	until := said.GetExpireAt().AsTime()
	switch {
	case said.GetFrom() != conn.who.Node(), by.ID != conn.who.ID:
		return nil, errors.New("it is signed by another proxy than the one that sends it")
	case said.GetTo() != f.cfg.Self:
		return nil, errors.New("it is meant for another proxy")
	case !now.Before(until), until.Sub(now) > 2*goodFor: // clocks may differ by as much
		return nil, errors.New("it is too old, or the clocks of the proxies differ by more than a minute")
	case len(said.GetCertificate()) != sha256.Size || said.GetId() == "":
		return nil, errors.New("it names nobody")
	}
	p := &principal.Principal{Kind: principal.Service, ID: said.GetId(), Teams: said.GetTeams(), Certificate: [sha256.Size]byte(said.GetCertificate())}
	if principal.CheckSPIFFE(p.ID) == nil {
		p.SPIFFE = p.ID
	}
	return &named{Caller: Caller{Principal: p, ends: said.GetCertificateExpireAt().AsTime()}, until: until}, nil
}

// check verifies a signature by the key of a certificate.
func check(public crypto.PublicKey, payload, signature []byte) error {
	message := append([]byte(domain), payload...)
	sum := sha256.Sum256(message)
	good := false
	switch k := public.(type) {
	case ed25519.PublicKey:
		good = ed25519.Verify(k, message, signature)
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(k, sum[:], signature)
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil
	}
	if !good {
		return errors.New("the signature is not that of the proxy that sends it")
	}
	return nil
}
