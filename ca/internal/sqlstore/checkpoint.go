package sqlstore

import (
	"context"
	"database/sql"
	"time"
)

const (
	// checkpointEvery is the least time between two checkpoints. A longer time
	// combines more changes of one page into one write. A shorter time keeps the
	// log smaller.
	checkpointEvery = 500 * time.Millisecond
	// restartAfter is a length of the log, in pages of 4 KiB. From it on, a
	// checkpoint makes commits wait, so that SQLite can write the log from its
	// beginning again.
	restartAfter = 32000
	// inlineCheckpoint is the length at which a commit itself moves the log. The
	// log reaches it only if the checkpointer is too slow.
	inlineCheckpoint = 64000
)

// checkpointer moves the pages of the write-ahead log into the file. Otherwise
// SQLite would do so in the commit that fills the log, and all callers of that
// commit and of the next would wait.
type checkpointer struct {
	db           *sqliteDB
	every        time.Duration
	restartAfter int
	changed      signal // there are pages to move
	stop         context.CancelFunc
	done         chan struct{}
}

func startCheckpointer(db *sqliteDB, every time.Duration, restartAfter int) *checkpointer {
	ctx, stop := context.WithCancel(context.Background())
	c := &checkpointer{db: db, every: every, restartAfter: restartAfter, changed: newSignal(), stop: stop, done: make(chan struct{})}
	go c.run(ctx)
	return c
}

// close ends the goroutine. The rest of the log is moved when the last connection
// closes.
func (c *checkpointer) close() {
	c.stop()
	<-c.done
}

func (c *checkpointer) run(ctx context.Context) {
	defer close(c.done)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-c.changed:
		case <-ctx.Done():
			return
		}
		c.checkpoint(ctx)
		pause.Reset(c.every)
	}
}

// checkpoint moves the log while commits continue. SQLite reuses a log only after
// all of it was moved, and under load commits add to it meanwhile. So when the log
// is long, checkpoint moves the rest in its own turn. It ignores errors: nothing is
// lost, the log grows, and the next commit returns the disk's error.
func (c *checkpointer) checkpoint(ctx context.Context) {
	pages, err := c.move(ctx, c.db.writes)
	if err != nil || pages < c.restartAfter {
		return
	}
	if _, err := c.move(ctx, c.db.writes); err != nil {
		return
	}
	select {
	case c.db.turn <- struct{}{}:
		defer func() { <-c.db.turn }()
	case <-ctx.Done():
		return
	}
	_, _ = c.move(ctx, c.db.writer)
}

// move writes the pages of the log that are not in the file yet, and returns how
// many pages the log holds.
func (c *checkpointer) move(ctx context.Context, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) (pages int, err error) {
	var busy, moved int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &pages, &moved)
	return pages, err
}
