package sqlstore

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store/storetest"
)

// checkpointed opens the file of a new store with a checkpointer that has the given
// times and lengths.
func checkpointed(t *testing.T, every time.Duration, restartAfter int) (d *sqliteDB, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store")
	if err := Create(t.Context(), path, storetest.Meta()); err != nil {
		t.Fatal(err)
	}
	d, err := connectSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	d.checkpointer = startCheckpointer(d, every, restartAfter)
	return d, path
}

func count(d *sqliteDB, hour int64) error {
	return d.update(context.Background(), func(tx transaction) error {
		return tx.do(context.Background(), `INSERT INTO hours (hour, issued, denied) VALUES ($1, 1, 1)`, hour)
	})
}

// A commit reaches the file itself, without a further commit.
func TestCheckpointReachesTheFile(t *testing.T) {
	t.Parallel()
	d, path := checkpointed(t, time.Millisecond, 1000)
	if err := count(d, 1); err != nil {
		t.Fatal(err)
	}
	alone := filepath.Join(t.TempDir(), "alone") // the file without its log
	for {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(alone, b, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("sqlite", "file:"+alone+"?immutable=1")
		if err != nil {
			t.Fatal(err)
		}
		var hours int
		err = db.QueryRow(`SELECT COUNT(*) FROM hours WHERE hour = 1`).Scan(&hours)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil && hours == 1 { // a copy made during the move may be unreadable
			return
		}
	}
}

// SQLite reuses the log under load, when there is always a commit after the last
// checkpoint.
func TestCheckpointRestartsTheLog(t *testing.T) {
	t.Parallel()
	d, path := checkpointed(t, 0, 50)
	var hour atomic.Int64
	var restarted atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !restarted.Load() {
				if err := count(d, hour.Add(1)); err != nil {
					t.Error(err)
					return
				}
				n, err := restarts(path)
				if err != nil {
					t.Error(err)
					return
				}
				restarted.Store(n >= 3)
			}
		})
	}
	wg.Wait()
}

// restarts reads from the log's header how often SQLite has reused it (the
// checkpoint sequence number of SQLite's WAL format).
func restarts(path string) (uint32, error) {
	f, err := os.Open(path + "-wal")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	header := make([]byte, 16)
	if _, err := f.ReadAt(header, 0); err != nil {
		return 0, fmt.Errorf("header of the log: %w", err)
	}
	return binary.BigEndian.Uint32(header[12:]), nil
}
