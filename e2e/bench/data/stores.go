package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	configv1 "github.com/prism-gateway/prism/protos/prism/config/v1"
	"github.com/prism-gateway/prism/shared/testserver/postgresserver"
	"github.com/prism-gateway/prism/shared/testserver/redisserver"
)

// store is a kind of store that is measured.
type store struct {
	kind       string
	durability configv1.Durability
	// cpuGoal and cpuWant are the goal of the proxy's processor time over the pass-through's, absolute that of the whole.
	cpuGoal, cpuWant, absolute string
	// settings are those of the backend.
	settings map[string]string
	// start starts the store and returns its endpoint, empty for none.
	start func(r *run) string
	// direct reads by the store's own client; nil: there is none.
	direct func(ctx context.Context, r *run, endpoint string) call
	// batch reads a hundred items at once by the store's own client; nil: not measured.
	batch func(ctx context.Context, r *run, endpoint string) call
}

func (s store) backend(endpoint string) *configv1.Backend {
	b := &configv1.Backend{Name: "bench-" + s.kind, Type: s.kind, Config: s.settings}
	if endpoint != "" {
		b.Endpoints = []string{endpoint}
	}
	return b
}

// passAddress is where the pass-through keeps its items: beside Prism's, not among them.
func (s store) passAddress(r *run, endpoint string) string {
	switch s.kind {
	case "sqlite":
		return filepath.Join(r.TempDir(), "pass.db")
	case "postgres":
		return postgresURL(endpoint)
	}
	return endpoint
}

var stores = []store{
	{
		kind: "redis", durability: configv1.Durability_DURABILITY_RELAXED, cpuGoal: "A1", cpuWant: "≤ +12 µs, ≤ 1.20", absolute: "≤ 60 µs",
		start:  func(r *run) string { return redisserver.Start(r, redisserver.Options{}).Addr() },
		direct: redisGet, batch: redisBatch,
	},
	{
		kind: "postgres", durability: configv1.Durability_DURABILITY_STRONG, cpuGoal: "A2", cpuWant: "≤ +17 µs, ≤ 1.25", absolute: "≤ 75 µs",
		settings: map[string]string{"database": "postgres", "sslmode": "disable"}, start: startPostgres, direct: postgresGet,
	},
	{
		kind: "sqlite", durability: configv1.Durability_DURABILITY_STRONG, cpuGoal: "A1", cpuWant: "≤ +12 µs, ≤ 1.20", absolute: "",
		start: func(r *run) string { return filepath.Join(r.TempDir(), "prism.db") },
	},
	{
		kind: "memory", durability: configv1.Durability_DURABILITY_NONE, cpuGoal: "A1", cpuWant: "≤ +12 µs, ≤ 1.20", absolute: "≤ 45 µs",
		start: func(*run) string { return "" },
	},
}

func redisGet(ctx context.Context, r *run, endpoint string) call {
	client := redis.NewClient(&redis.Options{Addr: endpoint, PoolSize: 64})
	r.Cleanup(func() { _ = client.Close() })
	for i := range items {
		if err := client.Set(ctx, "direct:"+string(key(i)), make([]byte, 256), 0).Err(); err != nil {
			r.Fatalf("%v", err)
		}
	}
	return func(ctx context.Context, i int) error {
		value, err := client.Get(ctx, "direct:"+string(key(i))).Bytes()
		if err == nil && len(value) != 256 {
			err = fmt.Errorf("get: %d bytes", len(value))
		}
		return err
	}
}

func redisBatch(ctx context.Context, r *run, endpoint string) call {
	client := redis.NewClient(&redis.Options{Addr: endpoint})
	r.Cleanup(func() { _ = client.Close() })
	return func(ctx context.Context, i int) error {
		pipe := client.Pipeline()
		for n := range 100 {
			pipe.Get(ctx, "direct:"+string(key(i*100+n)))
		}
		_, err := pipe.Exec(ctx)
		return err
	}
}

// startPostgres starts a server that trusts the role prism.
func startPostgres(r *run) string {
	return postgresserver.Start(r, postgresserver.Options{Trust: "prism"}).Addr()
}

// postgresURL is for 8 connections, as many as the proxy has.
func postgresURL(endpoint string) string {
	return "postgres://prism@" + endpoint + "/postgres?sslmode=disable&pool_max_conns=8"
}

func postgresGet(ctx context.Context, r *run, endpoint string) call {
	pool, err := pgxpool.New(ctx, postgresURL(endpoint))
	if err == nil {
		r.Cleanup(pool.Close)
		_, err = pool.Exec(ctx, "CREATE TABLE public.direct (name text PRIMARY KEY, value bytea NOT NULL)")
	}
	for i := 0; i < items && err == nil; i++ {
		_, err = pool.Exec(ctx, "INSERT INTO public.direct VALUES ($1, $2)", string(key(i)), make([]byte, 256))
	}
	if err != nil {
		r.Fatalf("%v", err)
	}
	return func(ctx context.Context, i int) error {
		var value []byte
		err := pool.QueryRow(ctx, "SELECT value FROM public.direct WHERE name = $1", string(key(i))).Scan(&value)
		if err == nil && len(value) != 256 {
			err = fmt.Errorf("get: %d bytes", len(value))
		}
		return err
	}
}
