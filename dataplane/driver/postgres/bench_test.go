package postgres_test

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/prism-gateway/prism/dataplane/driver/conformance"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
)

// Benchmark measures the driver and, on the same server, a pool of the SDK that sends the same statements.
func Benchmark(b *testing.B) {
	s := postgresserver.Start(b, postgresserver.Options{Keep: true})
	backend := backend(b, s)
	b.Run("driver", func(b *testing.B) { conformance.Bench(b, backend) })
	b.Run("bare", func(b *testing.B) { bare(b, s, backend.Config.Settings["database"]) })
}

// bare does what conformance.Bench does with the statements that the driver sends, each by itself.
func bare(b *testing.B, s *postgresserver.Server, database string) {
	cfg, err := pgxpool.ParseConfig("postgres://" + s.Addr() + "/" + database + "?sslmode=disable&pool_max_conns=8&plan_cache_mode=force_generic_plan")
	if err != nil {
		b.Fatal(err)
	}
	cfg.ConnConfig.User, cfg.ConnConfig.Password = postgresserver.User, postgresserver.Password
	pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	const ids = 1000
	space, value := []byte("bare"), bytes.Repeat([]byte("v"), 256)
	put := func(ctx context.Context, n int) error {
		const text = "SELECT status, current, at, existed, old_version, old_expire, old_modified, old_size, old_meta, old_large, old_value " +
			"FROM prism.apply($1, $2, $3, $4, 0, 0, $5, $6, 0, false, $7, $8, $9, $10, NULL, 0, false)"
		now := time.Now()
		args := []any{int64(n % ids), space, fmt.Appendf(nil, "id-%04d", n%ids), []byte{}, []byte{}, now.UnixMilli(), fmt.Appendf(nil, "%016x", n), now.UnixMicro(), []byte{}, value}
		var status int32
		var at int64
		var existed bool
		var size, expire, modified *int64
		var current, version, meta, large, old []byte
		return pool.QueryRow(ctx, text, args...).Scan(&status, &current, &at, &existed, &version, &expire, &modified, &size, &meta, &large, &old)
	}
	get := func(ctx context.Context, n int) error {
		const text = "SELECT version, expire, modified, size, meta, large, value FROM prism.item WHERE space = $1 AND id = $2 AND key = $3"
		var expire, modified, size int64
		var version, meta, large, got []byte
		err := pool.QueryRow(ctx, text, space, fmt.Appendf(nil, "id-%04d", n%ids), []byte{}).Scan(&version, &expire, &modified, &size, &meta, &large, &got)
		if err == nil && len(got) != len(value) {
			return pgx.ErrNoRows
		}
		return err
	}
	for n := range ids {
		if err := put(b.Context(), n); err != nil {
			b.Fatal(err)
		}
	}
	for _, callers := range []int{1, 16, 64} {
		for name, call := range map[string]func(context.Context, int) error{"get": get, "put": put} {
			b.Run(fmt.Sprintf("%s/%d", name, callers), func(b *testing.B) {
				b.ReportAllocs()
				var next atomic.Int64
				done := make(chan error, callers)
				for range callers {
					go func() {
						for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
							if err := call(b.Context(), int(n)); err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
				}
				for range callers {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
