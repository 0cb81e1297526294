package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/prism-gateway/prism/shared/certs"
)

// Lists as long as authorities make them cost a handshake nothing.
func BenchmarkHandshake(b *testing.B) {
	ca := newAuthority(b)
	own, caller := issue(b, ca, program("proxy")), issue(b, ca, program("api"))
	for name, many := range map[string]int{"without a list": -1, "a list of 1": 1, "a list of 100000": 100_000} {
		b.Run(name, func(b *testing.B) {
			files := filed(b, b.TempDir(), own)
			if many >= 0 {
				files.CrlFile = files.GetCaFile() + ".crl"
				revoked := make([]*x509.Certificate, many)
				for i := range revoked {
					revoked[i] = &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1))}
				}
				put(b, files.CrlFile, revoke(b, ca, time.Hour, revoked...))
			}
			s := serve(b, load(b, ofFiles(files)).Server(certs.ServerConfig{}))
			cfg := &tls.Config{RootCAs: pool(ca.PEM()), Certificates: []tls.Certificate{pair(b, caller)}}
			b.ReportAllocs()
			for b.Loop() {
				conn, err := s.dial(cfg)
				if err != nil {
					b.Fatal(err)
				}
				conn.Close()
			}
		})
	}
}
