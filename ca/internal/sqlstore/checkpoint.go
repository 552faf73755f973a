package sqlstore

import (
	"context"
	"database/sql"
	"time"
)

const (
	// checkpointEvery is how often, at most, the log is moved into the file.
	// The longer, the more commits that changed the same page cost one write;
	// the shorter, the less there is to move and to keep.
	checkpointEvery = 500 * time.Millisecond
	// restartAfter is the length of the log, in pages of 4 KiB, from which on
	// commits are held up for what is left to move, so that it can begin anew.
	restartAfter = 32000
	// inlineCheckpoint is the length at which a commit moves the log itself:
	// only where the checkpointer cannot keep up.
	inlineCheckpoint = 64000
)

// checkpointer moves what commits have left in the write-ahead log into the
// file. Done by the commit that fills the log, as SQLite would by itself, it
// holds up everyone who waits for that commit and the next.
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

// checkpoint moves the log beside the commits. Only a log that was moved to its
// end begins anew, and under load commits add to it meanwhile: once it is long,
// the rest is moved in a turn of its own. An error is not told: nothing is
// lost, the log grows on, and what ails the disk the next commit says.
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
