package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite" // the driver named sqlite of database/sql
)

func open(kind, address string) (store, error) {
	switch kind {
	case "redis":
		return redisStore{redis.NewClient(&redis.Options{Addr: address, ContextTimeoutEnabled: true, MaxRetries: -1})}, nil
	case "postgres":
		return openPostgres(address)
	case "sqlite":
		return openSQLite(address)
	case "memory":
		return &memoryStore{}, nil
	}
	return nil, fmt.Errorf("unknown store %q", kind)
}

type redisStore struct{ client *redis.Client }

func (s redisStore) get(ctx context.Context, name string) ([]byte, error) {
	value, err := s.client.Get(ctx, name).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return value, err
}

func (s redisStore) put(ctx context.Context, name string, value []byte) error {
	return s.client.Set(ctx, name, value, 0).Err()
}

type postgresStore struct{ pool *pgxpool.Pool }

func openPostgres(url string) (store, error) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	_, err = pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS public.item (name text PRIMARY KEY, value bytea NOT NULL)")
	return postgresStore{pool}, err
}

func (s postgresStore) get(ctx context.Context, name string) (value []byte, err error) {
	err = s.pool.QueryRow(ctx, "SELECT value FROM public.item WHERE name = $1", name).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return value, err
}

func (s postgresStore) put(ctx context.Context, name string, value []byte) error {
	_, err := s.pool.Exec(ctx, "INSERT INTO public.item VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
	return err
}

type sqliteStore struct{ read, write *sql.Stmt }

func openSQLite(path string) (store, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(full)")
	if err != nil {
		return nil, err
	}
	if _, err := db.Exec("CREATE TABLE IF NOT EXISTS item (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID"); err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	s := sqliteStore{}
	if s.read, err = db.Prepare("SELECT value FROM item WHERE name = ?"); err != nil {
		return nil, err
	}
	s.write, err = db.Prepare("INSERT OR REPLACE INTO item (name, value) VALUES (?, ?)")
	return s, err
}

func (s sqliteStore) get(ctx context.Context, name string) ([]byte, error) {
	var value []byte
	err := s.read.QueryRowContext(ctx, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return value, err
}

func (s sqliteStore) put(ctx context.Context, name string, value []byte) error {
	_, err := s.write.ExecContext(ctx, name, value)
	return err
}

type memoryStore struct{ items sync.Map }

func (s *memoryStore) get(_ context.Context, name string) ([]byte, error) {
	value, _ := s.items.Load(name)
	b, _ := value.([]byte)
	return b, nil
}

func (s *memoryStore) put(_ context.Context, name string, value []byte) error {
	s.items.Store(name, value)
	return nil
}
