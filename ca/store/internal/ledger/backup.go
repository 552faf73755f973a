package ledger

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
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// backupFormat is the first line's format. A backup is lines of JSON: a header;
// for each table a line that names it and its columns, and one array per row,
// byte strings in base64; and a last line with the number of rows and the
// SHA-256 of everything before it. Logins are left out, so that a copy of the
// store logs nobody in, and so is the key of the cursors.
const backupFormat = "mayfly-backup-1"

const (
	// maxBackupLine bounds one line of what Restore reads.
	maxBackupLine = 32 << 20
	// restoreBatch is how many rows are inserted at once.
	restoreBatch = 500
)

// backupTables are what a backup holds, in its order.
var backupTables = []*Table{
	tableState, tableCertificates, tableBodies, tableTokens, tableRevocations, tableBlocks, tableCRLState, tableCRLs,
	tableEvents, tableLinks, tableCheckpoints, tableHours, tableSessions,
}

// backupLine is every line of a backup that is not a row.
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

// backupWriter writes lines and sums them.
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
func (l *Ledger) Backup(ctx context.Context, w io.Writer) error {
	if err := l.denials.flush(ctx, false); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	b := newBackupWriter(w)
	return l.read(ctx, "backup", func(r Reader) error {
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
}

// table writes every row of t.
func (b *backupWriter) table(ctx context.Context, r Reader, t *Table) error {
	head := backupLine{Table: t.Name}
	for _, c := range t.Columns {
		head.Columns = append(head.Columns, c.Name)
	}
	if err := b.enc.Encode(head); err != nil {
		return err
	}
	rows, err := r.Query(ctx, `SELECT `+t.Names()+` FROM `+t.Name)
	if err != nil {
		return err
	}
	for rows.Next() {
		row := t.fresh()
		err := rows.Scan(row...)
		for _, v := range row {
			if raw, ok := v.(*[]byte); ok {
				*raw = nonNil(*raw) // null is nothing that a column may hold
			}
		}
		if err := errors.Join(err, b.enc.Encode(row)); err != nil {
			return errors.Join(err, rows.Close())
		}
		b.rows++
	}
	return errors.Join(rows.Err(), rows.Close())
}

// fresh returns pointers to one zero value per column.
func (t *Table) fresh() []any {
	row := make([]any, len(t.Columns))
	for i, c := range t.Columns {
		switch c.Kind {
		case Int:
			row[i] = new(int64)
		case Text:
			row[i] = new(string)
		case Bytes:
			row[i] = new([]byte)
		}
	}
	return row
}

// backupReader reads lines and sums those before the last.
type backupReader struct {
	in   *bufio.Scanner
	sum  hash.Hash
	rows int64
}

// next returns the next line, which is valid until the following call.
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

// Restore fills an empty store of the right shape from a backup, raises the
// floor, since what was issued or revoked after the backup is unknown, and
// appends ev. All of it is the caller's one transaction; an error leaves
// nothing. A store that is not empty is store.ErrExists.
func Restore(ctx context.Context, tx Tx, r io.Reader, ev store.Event) (store.Meta, time.Time, error) {
	b := &backupReader{in: bufio.NewScanner(r), sum: sha256.New()}
	b.in.Buffer(make([]byte, 0, 64<<10), maxBackupLine)
	if m, _, err := readMeta(ctx, tx); err != nil {
		return store.Meta{}, time.Time{}, err
	} else if m != nil {
		return store.Meta{}, time.Time{}, store.ErrExists
	}
	line, err := b.next()
	if err != nil {
		return store.Meta{}, time.Time{}, err
	}
	var header backupLine
	if err := json.Unmarshal(line, &header); err != nil || header.Format != backupFormat || header.Meta == nil {
		return store.Meta{}, time.Time{}, fmt.Errorf("this is no backup of the form %s", backupFormat)
	}
	b.add(line)
	if err := b.tables(ctx, tx); err != nil {
		return store.Meta{}, time.Time{}, err
	}
	if err := flagRevoked(ctx, tx, 0); err != nil {
		return store.Meta{}, time.Time{}, err
	}
	if err := insertMeta(ctx, tx, *header.Meta); err != nil {
		return store.Meta{}, time.Time{}, err
	}
	floor, err := restored(ctx, tx, ev)
	return *header.Meta, floor, err
}

// restored checks what was read and raises the floor over it.
func restored(ctx context.Context, tx Tx, ev store.Event) (time.Time, error) {
	if _, err := verifyChain(ctx, tx); err != nil {
		return time.Time{}, err
	}
	h, err := readHead(ctx, tx)
	if err != nil {
		return time.Time{}, err
	}
	floor, events, err := raiseAll(ctx, tx, h, ev)
	if err != nil {
		return time.Time{}, err
	}
	h.changeBlocks()
	if err := link(ctx, tx, h, events); err != nil {
		return time.Time{}, err
	}
	return fromMicro(floor), h.write(ctx, tx)
}

// tables reads every table and the last line.
func (b *backupReader) tables(ctx context.Context, tx Tx) error {
	known := make(map[string]*Table)
	for _, t := range backupTables {
		known[t.Name] = t
	}
	var into *Table
	var batch [][]any
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := tx.Insert(ctx, into, batch)
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
		for i, c := range into.Columns {
			if i >= len(l.Columns) || l.Columns[i] != c.Name || len(l.Columns) != len(into.Columns) {
				return fmt.Errorf("table %s has other columns", l.Table)
			}
		}
	}
}

// end compares the last line with what was read.
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

// parse reads one row.
func (t *Table) parse(line []byte) ([]any, error) {
	row := t.fresh()
	n := len(row)
	if err := json.Unmarshal(line, &row); err != nil || len(row) != n {
		return nil, fmt.Errorf("a row of %s is malformed", t.Name)
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
			return nil, fmt.Errorf("a row of %s holds null", t.Name)
		}
	}
	return row, nil
}
