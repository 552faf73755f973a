package sqlstore

import (
	"errors"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// FuzzCursor: only the store's own bytes are a valid cursor. A cursor gives back
// its position, and only in its own scope.
func FuzzCursor(f *testing.F) {
	l := &ledger{cursorKey: []byte("0123456789abcdef0123456789abcdef")}
	other := &ledger{cursorKey: []byte("another key")}
	f.Add("", int64(0), "")
	f.Add("AAAAAAAAAAAAAAAAAAAAAAAAAAA", int64(1)<<62, "abc")
	f.Fuzz(func(t *testing.T, s string, id int64, text string) {
		scope := cursorScope("certificates", text)
		if len(text) > 100 {
			text = text[:100]
		}
		own := l.cursor(scope, position{id, text})
		if p, err := l.parseCursor(scope, own); err != nil || p.id != id || p.text != text {
			t.Errorf("%+v, %v; want %d %q", p, err, id, text)
		}
		if _, err := other.parseCursor(scope, own); !errors.Is(err, store.ErrBadCursor) {
			t.Errorf("another store's: %v", err)
		}
		if _, err := l.parseCursor(cursorScope("events", text), own); !errors.Is(err, store.ErrBadCursor) {
			t.Errorf("another scope's: %v", err)
		}
		if p, err := l.parseCursor(scope, s); s != "" && s != own && (p != nil || !errors.Is(err, store.ErrBadCursor)) {
			t.Errorf("%q: %+v, %v", s, p, err)
		}
	})
}

// FuzzRestoreRow: a row of a backup is read whole or refused, and every value has
// the type of its column.
func FuzzRestoreRow(f *testing.F) {
	f.Add([]byte(`[1,"AQ==","AQ==",""]`))
	f.Add([]byte(`[1,null,"AQ=="]`))
	f.Add([]byte(`[1e400]`))
	f.Fuzz(func(t *testing.T, line []byte) {
		for _, table := range backupTables {
			row, err := table.parse(line)
			if err != nil {
				continue
			}
			if len(row) != len(table.columns) {
				t.Fatalf("%d values for %d columns", len(row), len(table.columns))
			}
			for i, c := range table.columns {
				ok := false
				switch c.kind {
				case kindInt:
					_, ok = row[i].(int64)
				case kindText:
					_, ok = row[i].(string)
				case kindBytes:
					var b []byte
					b, ok = row[i].([]byte)
					ok = ok && b != nil
				}
				if !ok {
					t.Fatalf("%s.%s is %T", table.name, c.name, row[i])
				}
			}
		}
	})
}
