package sqlstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

const (
	listColumns = `c.id, c.serial, c.profile, c.provider, c.identity, c.rule, c.run, c.engines, c.repository, c.repository_id, c.run_id,
		c.actor, c.token_issuer, c.token_id, c.single_use, c.token_iat, c.spki, c.aki, c.not_before, c.not_after,
		COALESCE(r.revoked_at, 0), COALESCE(r.revoked_by, ''), COALESCE(r.reason, '')`
	fullColumns = listColumns + `, b.claims, b.tbs, b.signature`
	fullFrom    = ` FROM certificates c JOIN bodies b ON b.id = c.id LEFT JOIN revocations r ON r.cert_id = c.id`
)

// certificateRow is a certificate and its id.
type certificateRow struct {
	id int64
	store.Certificate
}

// scanCertificate reads listColumns into a row, and the columns after them into
// more.
func scanCertificate(r row, more ...any) (*certificateRow, error) {
	var c certificateRow
	var serial, aki []byte
	var engines string
	var single, iat, notBefore, notAfter, revoked int64
	err := r.Scan(append([]any{&c.id, &serial, &c.Profile, &c.Provider, &c.Identity, &c.Rule, &c.Run, &engines, &c.Repository,
		&c.RepositoryID, &c.RunID, &c.Actor, &c.TokenIssuer, &c.TokenID, &single, &iat, &c.SPKI, &aki, &notBefore, &notAfter,
		&revoked, &c.RevokedBy, &c.Reason}, more...)...)
	if err != nil {
		return nil, err
	}
	c.Serial, c.AKI = hex.EncodeToString(serial), hex.EncodeToString(aki)
	c.SingleUse = single != 0
	c.TokenIAT, c.NotBefore, c.NotAfter, c.IssuedAt = fromMicro(iat), fromMicro(notBefore), fromMicro(notAfter), fromMicro(c.id>>idShift)
	if revoked != 0 {
		at := fromMicro(revoked)
		c.RevokedAt = &at
	}
	return &c, json.Unmarshal([]byte(engines), &c.Engines)
}

func scanFull(r row) (*store.Certificate, error) {
	var claims, tbs, sig []byte
	c, err := scanCertificate(r, &claims, &tbs, &sig)
	if err != nil {
		return nil, err
	}
	c.Claims, c.TBS, c.Signature = claims, tbs, sig
	return &c.Certificate, nil
}

// certificateBySerial returns the whole record of serial, or nil.
func certificateBySerial(ctx context.Context, r reader, serial []byte) (*store.Certificate, error) {
	return findCertificate(ctx, r, "c.serial", serial)
}

// findCertificate returns the whole record of the certificate whose unique column
// has value, or nil.
func findCertificate(ctx context.Context, r reader, column string, value any) (*store.Certificate, error) {
	all, err := collect(ctx, r, scanFull, `SELECT `+fullColumns+fullFrom+` WHERE `+column+` = $1`, value)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[0], nil
}

// Certificate implements store.Store.
func (l *ledger) Certificate(ctx context.Context, serial string) (*store.Certificate, error) {
	raw, err := parseSerial(serial)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w: %w", store.ErrNotFound, err)
	}
	return read(ctx, l, "read certificate", func(r reader) (*store.Certificate, error) {
		c, err := certificateBySerial(ctx, r, raw)
		if err == nil && c == nil {
			err = fmt.Errorf("%s: %w", serial, store.ErrNotFound)
		}
		return c, err
	})
}

// Certificates implements store.Store.
func (l *ledger) Certificates(ctx context.Context, f store.CertificateFilter) ([]store.Certificate, string, error) {
	fields := matchFields(f.Match)
	scope := cursorScope(append([]string{"certificates", f.SerialPrefix, f.Status, timeText(f.Since), timeText(f.Until)}, fields[:]...)...)
	if f.Now.IsZero() {
		f.Now = time.Now()
	}
	rows, next, err := list[*certificateRow]{
		name: "list certificates", scope: scope,
		query: func(ctx context.Context, r reader, below *position, limit int) (*query, error) {
			return l.certificateQuery(ctx, r, f, below, limit)
		},
		scan: func(r row) (*certificateRow, error) { return scanCertificate(r) },
		end:  func(c *certificateRow) position { return position{c.id, ""} },
	}.page(ctx, l, f.Cursor, f.Limit)
	if err != nil {
		return nil, "", err
	}
	out := make([]store.Certificate, len(rows))
	for i, c := range rows {
		out[i] = c.Certificate
	}
	return out, next, nil
}

// certificateQuery builds the query of a page, newest first. It chooses the index,
// since SQLite does not know how often a value occurs. Every index by a value
// separates revoked certificates from the others. So a page of one status is one
// range of the index, and a page of both consists of two ranges.
func (l *ledger) certificateQuery(ctx context.Context, r reader, f store.CertificateFilter, below *position, limit int) (*query, error) {
	index, err := l.chooseIndex(ctx, r, f)
	if err != nil {
		return nil, err
	}
	q := &query{index: index}
	flags := []string{"0", "1"} // the values of column revoked
	switch f.Status {
	case "":
	case "valid":
		flags = flags[:1]
		q.where("c.not_after >= "+q.arg(micro(f.Now)), "c.id >= "+q.arg(idAt(f.Now.Add(-maxLifetime))))
	case "expired":
		flags = flags[:1]
		q.where("c.not_after < " + q.arg(micro(f.Now)))
	case "revoked":
		flags = flags[1:]
	default:
		return nil, fmt.Errorf("unknown status %q", f.Status)
	}
	if err := whereSerial(q, f.SerialPrefix, l.dialect); err != nil {
		return nil, err
	}
	whereMatch(q, f.Match)
	if below != nil {
		q.where("c.id < " + q.arg(below.id))
	}
	columns, from := "c.*", "(%s) c"
	if l.dialect.indexHints && len(f.SerialPrefix) > 1 {
		// Thousands of serials may begin like this. Sort their ids, not whole rows.
		columns, from = "c.id", "(%s) found CROSS JOIN certificates c ON c.id = found.id"
	}
	var pages []string
	page := func(by ...equal) {
		pages = append(pages, q.page(l.dialect, "certificates c", columns, by, "c.id", "DESC", limit))
	}
	switch {
	case index == "" && f.Status == "":
		page()
	case index == "certificates_revoked":
		page(equal{"c.revoked + 0", "1"})
	default:
		for _, flag := range flags {
			page(equal{"c.revoked", flag})
		}
	}
	found := strings.Join(pages, " UNION ALL ") + fmt.Sprintf(" ORDER BY id DESC LIMIT %d", limit)
	q.text = "SELECT " + listColumns + " FROM " + fmt.Sprintf(from, found) + " LEFT JOIN revocations r ON r.cert_id = c.id ORDER BY c.id DESC"
	return q, nil
}

// whereMatch adds the conditions of m on certificates c to q.
func whereMatch(q *query, m store.Match) {
	for i, v := range matchFields(m) {
		if v == "" {
			continue
		}
		column := "c." + matchColumns[i]
		q.where(column + " = " + q.arg(v))
		switch matchColumns[i] {
		case "repository", "repository_id", "run_id", "actor":
			q.where(column + " <> ''") // so that the partial index applies
		case "profile":
			if v != "client" {
				q.where("c.profile <> 'client'")
			}
		}
	}
	if m.Since != nil {
		q.where("c.id >= " + q.arg(idAt(*m.Since)))
	}
	if m.Until != nil {
		q.where("c.id < " + q.arg(idAt(*m.Until)))
	}
}

// matchColumns are the columns of matchFields.
var matchColumns = [blockFields]string{"token_issuer", "repository", "repository_id", "run_id", "actor", "identity", "profile"}

// idAt returns the lowest id of a certificate issued at t or later.
func idAt(t time.Time) int64 {
	us := micro(t)
	switch {
	case us < 0:
		return 0
	case us >= 1<<(63-idShift):
		return 1<<63 - 1
	}
	return us << idShift
}

// whereSerial selects the serials that begin with prefix. For one digit, the query
// reads certificates from the newest and compares. For more digits, it uses the
// index of the serials.
func whereSerial(q *query, prefix string, d *dialect) error {
	if prefix == "" {
		return nil
	}
	if len(prefix) > 32 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return fmt.Errorf("serial prefix %q is not lower-case hex", prefix)
	}
	low, _ := hex.DecodeString(prefix + strings.Repeat("0", 32-len(prefix))) // prefix is hex, as checked above
	high, _ := hex.DecodeString(prefix + strings.Repeat("f", 32-len(prefix)))
	if len(prefix) == 1 {
		q.where("c.serial >= "+q.arg(low), "c.serial <= "+q.arg(high))
		return nil
	}
	ids := "(SELECT id FROM certificates WHERE serial >= " + q.arg(low) + " AND serial <= " + q.arg(high) + ")"
	if d.indexHints {
		q.where("c.id IN " + ids)
	} else {
		q.where("c.id = ANY (ARRAY" + ids + ")") // read first, whatever the planner prefers
	}
	return nil
}

// commonRows is the number of rows from which a value counts as common. A list that
// reads this many rows is still quick.
const commonRows = 2000

// chooseIndex returns the index whose value occurs least, of those that the filters
// of f can use. "" means to read along the table.
func (l *ledger) chooseIndex(ctx context.Context, r reader, f store.CertificateFilter) (string, error) {
	fields := matchFields(f.Match)
	var by []int
	for _, i := range []int{3, 4, 2, 1, 5} { // run_id, actor, repository_id, repository, identity
		if fields[i] != "" {
			by = append(by, i)
		}
	}
	switch {
	case len(f.SerialPrefix) > 1:
		return "", nil
	case len(by) == 1:
		return "certificates_" + matchColumns[by[0]], nil
	case len(by) == 0 && f.Profile != "" && f.Profile != "client":
		return "certificates_servers", nil
	case len(by) == 0 && f.Status == "revoked":
		return "certificates_revoked", nil
	}
	best, least := "", int64(-1)
	for _, i := range by {
		n, err := countRows(ctx, r, "certificates", matchColumns[i], fields[i])
		if err != nil {
			return "", err
		}
		if least < 0 || n < least {
			best, least = "certificates_"+matchColumns[i], n
		}
	}
	return best, nil
}

// countRows counts the rows of table whose column has value, but at most
// commonRows.
func countRows(ctx context.Context, r reader, table, column, value string) (n int64, err error) {
	_, err = queryRow(ctx, r, fmt.Sprintf(`SELECT COUNT(*) FROM (SELECT 1 AS x FROM %s WHERE %s = $1 AND %s <> '' LIMIT %d) AS y`, table, column, column, commonRows),
		[]any{value}, &n)
	return n, err
}

// Each implements store.Store. It reads in pages, so that a slow f does not make
// one read last long. It may leave out certificates that are recorded meanwhile.
func (l *ledger) Each(ctx context.Context, f func(*store.Certificate) error) error {
	after := []byte{}
	for {
		page, err := read(ctx, l, "walk certificates", func(r reader) ([]*store.Certificate, error) {
			return collect(ctx, r, scanFull, `SELECT `+fullColumns+fullFrom+` WHERE c.serial > $1 ORDER BY c.serial LIMIT 500`, after)
		})
		if err != nil {
			return err
		}
		for _, c := range page {
			if err := f(c); err != nil {
				return err
			}
		}
		if len(page) == 0 {
			return nil
		}
		if after, err = parseSerial(page[len(page)-1].Serial); err != nil {
			return err
		}
	}
}
