package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// maxSwept bounds the items that one step of a sweep removes.
	maxSwept = 1000
	// maxParts bounds the parts of large values that one step removes.
	maxParts = 32
)

// sweeper removes what has expired until ctx ends. What another proxy is removing it passes over.
func (i *Instance) sweeper(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if i.ready.Load() {
			i.Sweep(ctx) // what fails now is left for the next time
		}
	}
}

// Sweep removes all expired items and tokens and the parts of no item now, and says how many items there were.
func (i *Instance) Sweep(ctx context.Context) (int, error) {
	if err := i.prepared(ctx); err != nil {
		return 0, failed(err)
	}
	now := i.now().UnixMilli()
	total := 0
	for {
		var n int
		if err := i.pool.QueryRow(ctx, i.texts.sweepItems, now, maxSwept).Scan(&n); err != nil {
			return total, failed(storeFault(err))
		}
		if total += n; n < maxSwept {
			break
		}
	}
	for {
		tag, err := i.pool.Exec(ctx, i.texts.sweepTokens, now, maxSwept)
		if err != nil {
			return total, failed(storeFault(err))
		}
		if tag.RowsAffected() < maxSwept {
			break
		}
	}
	if _, err := i.pool.Exec(ctx, i.texts.giveUpOld, now-unfinishedLife.Milliseconds()); err != nil {
		return total, failed(storeFault(err))
	}
	for {
		if more, err := i.sweepParts(ctx); err != nil || !more {
			if err != nil {
				return total, failed(storeFault(err))
			}
			return total, nil
		}
	}
}

// sweepParts removes some parts of one value, and says whether there may be more.
func (i *Instance) sweepParts(ctx context.Context) (more bool, err error) {
	tx, err := i.pool.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	var name []byte
	if err := tx.QueryRow(ctx, i.texts.partsOf).Scan(&name); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			return false, nil
		}
		return false, err
	}
	tag, err := tx.Exec(ctx, i.texts.dropPart, name, maxParts)
	if err != nil {
		return false, err
	}
	if tag.RowsAffected() < maxParts {
		if _, err := tx.Exec(ctx, i.texts.dropLarge, name); err != nil {
			return false, err
		}
	}
	return true, tx.Commit(ctx)
}
