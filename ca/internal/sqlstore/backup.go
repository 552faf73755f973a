package sqlstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// backupFormat is the format named in the first line. A backup consists of lines of
// JSON. First comes a header. Each table has a line with its name and columns, then
// one array per row, with byte strings in base64. The last line has the number of
// rows and the SHA-256 of everything before it. Logins and the key of the cursors
// are left out, so a copy of the store holds no login.
const backupFormat = "mayfly-backup-1"

const (
	// maxBackupLine bounds one line that Restore reads.
	maxBackupLine = 32 << 20
	// restoreBatch is how many rows are inserted at a time.
	restoreBatch = 500
)

// backupTables are the tables of a backup, in its order.
var backupTables = []*table{
	tableState, tableCertificates, tableBodies, tableTokens, tableRevocations, tableBlocks, tableCRLState, tableCRLs,
	tableEvents, tableLinks, tableCheckpoints, tableHours, tableSessions,
}

// backupLine is any line of a backup that is not a row.
type backupLine struct {
	Format  string      `json:"format,omitempty"`
	Meta    *store.Meta `json:"meta,omitempty"`
	Taken   *time.Time  `json:"taken,omitempty"`
	Table   string      `json:"table,omitempty"`
	Columns []string    `json:"columns,omitempty"`
	End     bool        `json:"end,omitempty"`
	Rows    int64       `json:"rows,omitempty"`
	SHA256  string      `json:"sha256,omitempty"`
}

// backupWriter writes lines and hashes them.
type backupWriter struct {
	out  *bufio.Writer
	sum  hash.Hash
	enc  *json.Encoder
	rows int64
}

func newBackupWriter(w io.Writer) *backupWriter {
	b := &backupWriter{out: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
	b.enc = json.NewEncoder(io.MultiWriter(b.out, b.sum))
	b.enc.SetEscapeHTML(false)
	return b
}

// Backup implements store.Store.
func (l *ledger) Backup(ctx context.Context, w io.Writer) error {
	if err := l.denials.flush(ctx, false); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	b := newBackupWriter(w)
	err := l.db.snapshot(ctx, func(r reader) error {
		taken := time.Now().UTC()
		if err := b.enc.Encode(backupLine{Format: backupFormat, Meta: &l.meta, Taken: &taken}); err != nil {
			return err
		}
		for _, t := range backupTables {
			if err := b.table(ctx, r, t); err != nil {
				return err
			}
		}
		end := backupLine{End: true, Rows: b.rows, SHA256: hex.EncodeToString(b.sum.Sum(nil))}
		if err := b.enc.Encode(end); err != nil {
			return err
		}
		return b.out.Flush()
	})
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

// table writes every row of t.
func (b *backupWriter) table(ctx context.Context, r reader, t *table) error {
	if err := b.enc.Encode(backupLine{Table: t.name, Columns: t.columnNames()}); err != nil {
		return err
	}
	return r.query(ctx, `SELECT `+strings.Join(t.columnNames(), ", ")+` FROM `+t.name, nil, func(r row) error {
		values := t.zeroValues()
		if err := r.Scan(values...); err != nil {
			return err
		}
		for _, v := range values {
			if raw, ok := v.(*[]byte); ok {
				*raw = nonNil(*raw) // no column may hold null
			}
		}
		b.rows++
		return b.enc.Encode(values)
	})
}

// zeroValues returns pointers to one zero value per column.
func (t *table) zeroValues() []any {
	row := make([]any, len(t.columns))
	for i, c := range t.columns {
		switch c.kind {
		case kindInt:
			row[i] = new(int64)
		case kindText:
			row[i] = new(string)
		case kindBytes:
			row[i] = new([]byte)
		}
	}
	return row
}

// backupReader reads lines and hashes all but the last.
type backupReader struct {
	in   *bufio.Scanner
	sum  hash.Hash
	rows int64
}

// next returns the next line. It is valid until the following call.
func (b *backupReader) next() ([]byte, error) {
	if !b.in.Scan() {
		return nil, errors.Join(errors.New("the backup ends too early"), b.in.Err())
	}
	return b.in.Bytes(), nil
}

func (b *backupReader) add(line []byte) {
	b.sum.Write(line)
	b.sum.Write([]byte{'\n'})
}

// restoreBackup fills an empty store from a backup, raises the floor, appends ev
// and returns the floor. It raises the floor because certificates issued or revoked
// after the backup are unknown. The backup must have the fingerprint root.
func restoreBackup(ctx context.Context, tx transaction, r io.Reader, root string, ev store.Event) (floor time.Time, _ error) {
	b := &backupReader{in: bufio.NewScanner(r), sum: sha256.New()}
	b.in.Buffer(make([]byte, 0, 64<<10), maxBackupLine)
	m, err := b.header(root)
	if err != nil {
		return floor, err
	}
	if err := b.tables(ctx, tx); err != nil {
		return floor, err
	}
	if err := flagRevoked(ctx, tx, 0); err != nil {
		return floor, err
	}
	if err := insertMeta(ctx, tx, *m); err != nil {
		return floor, err
	}
	if _, err := verifyChain(ctx, tx); err != nil {
		return floor, err
	}
	h, err := readHead(ctx, tx)
	if err != nil {
		return floor, err
	}
	floor, events, err := raiseAll(ctx, tx, h, ev)
	if err != nil {
		return floor, err
	}
	h.changeBlocks()
	if err := link(ctx, tx, h, events); err != nil {
		return floor, err
	}
	return floor, h.write(ctx, tx)
}

// header reads the first line.
func (b *backupReader) header(root string) (*store.Meta, error) {
	line, err := b.next()
	if err != nil {
		return nil, err
	}
	var l backupLine
	switch err := json.Unmarshal(line, &l); {
	case err != nil || l.Format != backupFormat || l.Meta == nil:
		return nil, fmt.Errorf("this is not a backup of the form %s", backupFormat)
	case l.Meta.RootFingerprint != root:
		return nil, fmt.Errorf("the backup is of root %s: %w", l.Meta.RootFingerprint, store.ErrOtherRoot)
	}
	b.add(line)
	return l.Meta, nil
}

// tables reads every table and the last line, and inserts the rows.
func (b *backupReader) tables(ctx context.Context, tx transaction) error {
	known := make(map[string]*table)
	for _, t := range backupTables {
		known[t.name] = t
	}
	var into *table
	var batch [][]any
	flush := func() error {
		err := tx.insert(ctx, into, batch)
		batch = nil
		return err
	}
	for {
		line, err := b.next()
		if err != nil {
			return err
		}
		if bytes.HasPrefix(line, []byte{'['}) {
			if into == nil {
				return errors.New("a row before the first table")
			}
			row, err := into.parse(line)
			if err != nil {
				return err
			}
			b.add(line)
			b.rows++
			if batch = append(batch, row); len(batch) == restoreBatch {
				if err := flush(); err != nil {
					return err
				}
			}
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		var l backupLine
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("line after %d rows: %w", b.rows, err)
		}
		if l.End {
			return b.end(l, len(known))
		}
		if into = known[l.Table]; into == nil {
			return fmt.Errorf("unknown or repeated table %q", l.Table)
		}
		delete(known, l.Table)
		b.add(line)
		if !slices.Equal(l.Columns, into.columnNames()) {
			return fmt.Errorf("table %s has other columns", l.Table)
		}
	}
}

// end compares the last line with the rows that were read.
func (b *backupReader) end(l backupLine, missing int) error {
	switch {
	case missing > 0:
		return fmt.Errorf("%d tables are missing", missing)
	case l.Rows != b.rows || l.SHA256 != hex.EncodeToString(b.sum.Sum(nil)):
		return errors.New("the backup is damaged: its sum is another")
	case b.in.Scan():
		return errors.New("the backup goes on after its end")
	}
	return b.in.Err()
}

// parse parses one row.
func (t *table) parse(line []byte) ([]any, error) {
	row := t.zeroValues()
	n := len(row)
	if err := json.Unmarshal(line, &row); err != nil || len(row) != n {
		return nil, fmt.Errorf("a row of %s is malformed", t.name)
	}
	for i := range row {
		switch v := row[i].(type) {
		case *int64:
			row[i] = *v
		case *string:
			row[i] = *v
		case *[]byte:
			row[i] = nonNil(*v)
		default: // null
			return nil, fmt.Errorf("a row of %s holds null", t.name)
		}
	}
	return row, nil
}
