package sqlstore

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	defaultLimit = 100
	maxLimit     = 500
)

// list describes one of the lists that a store returns in pages.
type list[T any] struct {
	name  string
	scope []byte // of the list's cursors
	// query builds the query of a page that begins after below. below is nil for
	// the first page. A nil query means an empty page.
	query func(ctx context.Context, r reader, below *position, limit int) (*query, error)
	scan  func(row) (T, error)
	end   func(T) position
}

// page returns up to limit rows and the cursor of the next page. The cursor is ""
// after the last page.
func (s list[T]) page(ctx context.Context, l *ledger, cursor string, limit int) (rows []T, next string, _ error) {
	if limit <= 0 {
		limit = defaultLimit
	}
	limit = min(limit, maxLimit)
	below, err := l.parseCursor(s.scope, cursor)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", s.name, err)
	}
	rows, err = read(ctx, l, s.name, func(r reader) ([]T, error) {
		q, err := s.query(ctx, r, below, limit+1)
		if err != nil || q == nil {
			return nil, err
		}
		return collect(ctx, r, s.scan, q.text, q.args...)
	})
	if err == nil && len(rows) > limit {
		rows = rows[:limit]
		next = l.cursor(s.scope, s.end(rows[limit-1]))
	}
	return rows, next, err
}

// query is a SELECT that is being built.
type query struct {
	text  string
	args  []any
	terms []string
	index string // for SQLite
}

// arg adds a parameter and returns its name.
func (q *query) arg(v any) string {
	q.args = append(q.args, v)
	return "$" + strconv.Itoa(len(q.args))
}

func (q *query) where(terms ...string) { q.terms = append(q.terms, terms...) }

func (q *query) conditions() string {
	if len(q.terms) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(q.terms, " AND ")
}

// alongTable, instead of an index, makes SQLite read the table in the order of its
// primary key.
const alongTable = "."

// hint returns the SQL that makes SQLite use an index. With "", SQLite chooses.
func (d *dialect) hint(index string) string {
	switch {
	case !d.indexHints || index == "":
		return ""
	case index == alongTable:
		return " NOT INDEXED"
	}
	return " INDEXED BY " + index
}

// equal is a column with the value that it must have.
type equal struct{ column, value string }

// page returns the SQL for the newest limit rows, or the oldest if direction is
// ASC, in the order of order. It selects columns of the rows of table for which by
// and the terms of q hold. It does not change q, since a list may consist of
// several pages. If q names no index, SQLite reads along the table.
func (q *query) page(d *dialect, table, columns string, by []equal, order, direction string, limit int) string {
	terms := make([]string, 0, len(by)+len(q.terms))
	for _, c := range by {
		terms = append(terms, c.column+" = "+c.value)
	}
	whole := query{terms: append(terms, q.terms...)}
	return fmt.Sprintf("SELECT * FROM (SELECT %s FROM %s%s%s ORDER BY %s %s LIMIT %d) AS page", columns, table, d.hint(cmp.Or(q.index, alongTable)), whole.conditions(), order, direction, limit)
}

// position is where a page ended: an id, and a text if ids are not unique.
type position struct {
	id   int64
	text string
}

// cursorScope identifies a list and its filters. A cursor is valid for one scope.
func cursorScope(parts ...string) []byte {
	h := sha256.New()
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

const cursorMAC = 12

// cursor encodes p: its id, its text, and a MAC over both and the scope, with a key
// that only the store has.
func (l *ledger) cursor(scope []byte, p position) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(p.id))
	b = append(b, p.text...)
	return base64.RawURLEncoding.EncodeToString(append(b, l.cursorSum(scope, b)...))
}

func (l *ledger) cursorSum(scope, b []byte) []byte {
	m := hmac.New(sha256.New, l.cursorKey)
	m.Write(scope)
	m.Write(b)
	return m.Sum(nil)[:cursorMAC]
}

// parseCursor reverses cursor. It returns nil for "", and store.ErrBadCursor for a
// cursor of another store or scope.
func (l *ledger) parseCursor(scope []byte, s string) (*position, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > 256 {
		return nil, store.ErrBadCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 8+cursorMAC {
		return nil, store.ErrBadCursor
	}
	body, mac := b[:len(b)-cursorMAC], b[len(b)-cursorMAC:]
	if !hmac.Equal(mac, l.cursorSum(scope, body)) {
		return nil, store.ErrBadCursor
	}
	return &position{int64(binary.BigEndian.Uint64(body)), string(body[8:])}, nil
}

func timeText(t *time.Time) string {
	if t == nil {
		return ""
	}
	return strconv.FormatInt(micro(*t), 10)
}
