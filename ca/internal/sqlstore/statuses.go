package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// maxStatuses bounds the number of statuses that Statuses returns.
const maxStatuses = 1000

// clientLifetime bounds NotAfter - IssuedAt of a client's certificate: the
// profile's cap plus an hour.
const clientLifetime = 2 * time.Hour

// cutSpan is how long ago a session that was cut in the last day may have begun. A
// report may say that a session began a week ago.
const cutSpan = 8 * 24 * time.Hour

// PutStatus implements store.Store.
func (l *ledger) PutStatus(ctx context.Context, by store.SessionReporter, s store.MachineStatus) error {
	if by.Machine == "" || by.Engine == "" {
		return fmt.Errorf("store status: no machine or engine")
	}
	return l.update(ctx, "store status", func(tx transaction, _ *chainHead) ([]store.Event, error) {
		return nil, tx.do(ctx, `INSERT INTO statuses (engine, machine, state, version, engine_version, engine_socket, certificate_not_after, feed_at, seen_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (engine, machine) DO UPDATE SET
			state = excluded.state, version = excluded.version, engine_version = excluded.engine_version, engine_socket = excluded.engine_socket,
			certificate_not_after = excluded.certificate_not_after, feed_at = excluded.feed_at, seen_at = excluded.seen_at`,
			by.Engine, by.Machine, sanitize(s.State), sanitize(s.Version), sanitize(s.EngineVersion), sanitize(s.EngineSocket),
			micro(s.CertificateNotAfter), micro(s.FeedAt), micro(time.Now()))
	})
}

// Statuses implements store.Store.
func (l *ledger) Statuses(ctx context.Context) ([]store.MachineStatus, error) {
	type machine struct{ engine, name string }
	return read(ctx, l, "list statuses", func(r reader) ([]store.MachineStatus, error) {
		out, err := collect(ctx, r, scanStatus, fmt.Sprintf(`SELECT * FROM (
			SELECT engine, machine, state, version, engine_version, engine_socket, certificate_not_after, feed_at, seen_at
			FROM statuses ORDER BY seen_at DESC, engine, machine LIMIT %d) AS newest ORDER BY engine, seen_at DESC, machine`, maxStatuses))
		if err != nil {
			return nil, err
		}
		live := make(map[machine]int)
		err = r.query(ctx, `SELECT engine, machine, COUNT(*) FROM sessions`+l.dialect.hint("sessions_live")+` WHERE closed_at = 0 AND seen_at >= $1 GROUP BY engine, machine`,
			[]any{micro(time.Now().Add(-liveWindow))}, func(r row) error {
				var m machine
				var n int
				err := r.Scan(&m.engine, &m.name, &n)
				live[m] = n
				return err
			})
		for i := range out {
			out[i].LiveSessions = live[machine{out[i].Engine, out[i].Machine}]
		}
		return out, err
	})
}

func scanStatus(r row) (s store.MachineStatus, err error) {
	var ends, feed, seen int64
	err = r.Scan(&s.Engine, &s.Machine, &s.State, &s.Version, &s.EngineVersion, &s.EngineSocket, &ends, &feed, &seen)
	s.CertificateNotAfter, s.FeedAt, s.SeenAt = fromMicro(ends), fromMicro(feed), fromMicro(seen)
	return s, err
}

// Counts implements store.Store. Each count reads a short range of an index: clients
// of the last two hours, servers of the last day, live sessions, cut sessions.
func (l *ledger) Counts(ctx context.Context, now time.Time) (store.Counts, error) {
	return read(ctx, l, "count", func(r reader) (c store.Counts, _ error) {
		count := func(n *int, query string, args ...any) error {
			var rows int
			_, err := queryRow(ctx, r, query, args, &rows)
			*n += rows
			return err
		}
		for _, of := range []struct {
			profile, index string
			life           time.Duration
		}{{"profile = 'client'", alongTable, clientLifetime}, {"profile <> 'client'", "certificates_servers", maxLifetime}} {
			if err := count(&c.Valid, fmt.Sprintf(`SELECT COUNT(*) FROM (SELECT 1 AS x FROM certificates%s WHERE revoked = 0 AND id >= $1 AND not_after >= $2 AND %s
				ORDER BY id DESC LIMIT %d) AS valid`, l.dialect.hint(of.index), of.profile, store.MaxCount), idAt(now.Add(-of.life)), micro(now)); err != nil {
				return c, err
			}
		}
		if err := count(&c.Live, `SELECT COUNT(*) FROM sessions`+l.dialect.hint("sessions_live")+` WHERE closed_at = 0 AND seen_at >= $1`, micro(now.Add(-liveWindow))); err != nil {
			return c, err
		}
		err := count(&c.Cut, `SELECT COUNT(*) FROM sessions`+l.dialect.hint("sessions_cut")+` WHERE `+isCut+` AND opened_at >= $1 AND closed_at >= $2`,
			micro(now.Add(-cutSpan)), micro(now.Add(-24*time.Hour)))
		return c, err
	})
}
