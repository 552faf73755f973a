package sqlstore

import (
	"context"
	"database/sql"
	"time"
)

const (
	// checkpointEvery is the least time between two checkpoints. With a longer
	// time, more changes of one page cost one write; with a shorter time, the
	// log is smaller.
	checkpointEvery = 500 * time.Millisecond
	// restartAfter is the length of the log, in pages of 4 KiB, from which on a
	// checkpoint makes commits wait, so that SQLite can write the log from its
	// beginning again.
	restartAfter = 32000
	// inlineCheckpoint is the length at which a commit moves the log itself: it
	// is reached only where the checkpointer is too slow.
	inlineCheckpoint = 64000
)

// checkpointer moves the pages of the write-ahead log into the file. SQLite itself
// would do so in the commit that fills the log, and all callers of that commit and
// of the next would wait.
type checkpointer struct {
	db           *sqliteDB
	every        time.Duration
	restartAfter int
	changed      signal // there is something to move
	stop         context.CancelFunc
	done         chan struct{}
}

func startCheckpointer(db *sqliteDB, every time.Duration, restartAfter int) *checkpointer {
	ctx, stop := context.WithCancel(context.Background())
	c := &checkpointer{db: db, every: every, restartAfter: restartAfter, changed: newSignal(), stop: stop, done: make(chan struct{})}
	go c.run(ctx)
	return c
}

// close ends the goroutine. What is left in the log is moved when the last
// connection closes.
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

// checkpoint moves the log while commits go on. SQLite reuses a log only if all of
// it was moved, and under load commits add to it meanwhile. So once the log is
// long, checkpoint moves the rest in a turn of its own. It ignores errors: nothing
// is lost, the log grows, and the next commit returns what is wrong with the disk.
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

// move writes the pages of the log that are not in the file yet, and returns
// how many the log holds.
func (c *checkpointer) move(ctx context.Context, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) (pages int, err error) {
	var busy, moved int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &pages, &moved)
	return pages, err
}
