package sqlstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/store"
)

// chainPrefix begins the hashed bytes of a link. It names their format.
const chainPrefix = "mayfly event link 1\n"

// eventRow is an event in its stored and hashed form.
type eventRow struct {
	store.Event
	detail string
}

// newEventRow sanitizes and bounds ev, whose texts may come from foreign tokens.
func newEventRow(ev store.Event, now time.Time) (eventRow, error) {
	if ev.Type == "" {
		return eventRow{}, fmt.Errorf("event without a type")
	}
	for _, f := range []*string{&ev.Type, &ev.By, &ev.Serial, &ev.Identity, &ev.Repository, &ev.RunID, &ev.Rule, &ev.Reason} {
		*f = sanitize(*f)
	}
	if ev.Time.IsZero() {
		ev.Time = now
	}
	if ev.Count < 1 {
		ev.Count = 1
	}
	e := eventRow{Event: ev}
	if len(ev.Detail) > 0 {
		cleaned := make(map[string]string, len(ev.Detail))
		for k, v := range ev.Detail {
			if len(cleaned) == 32 {
				break
			}
			cleaned[sanitize(k)] = sanitize(v)
		}
		raw, err := json.Marshal(cleaned)
		if err != nil {
			return eventRow{}, err
		}
		e.detail = string(raw)
	}
	return e, nil
}

// sanitize makes s valid UTF-8 without NUL, of at most maxField bytes.
func sanitize(s string) string {
	if len(s) > maxField {
		s = s[:maxField]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// appendTo appends the event's hashed form to b: every field, each text after its
// length, so that no two events have the same form.
func (e *eventRow) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(e.Seq))
	b = binary.BigEndian.AppendUint64(b, uint64(micro(e.Time)))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Count))
	for _, s := range [...]string{e.Type, e.By, e.Serial, e.Identity, e.Repository, e.RunID, e.Rule, e.Reason, e.detail} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// linkHash returns the hash of a link, over the previous link's hash and all the
// link's events.
func linkHash(before, events []byte) []byte {
	h := sha256.New()
	h.Write([]byte(chainPrefix))
	h.Write(before)
	h.Write(events)
	return h.Sum(nil)
}

// link writes events as one link of the chain and sets h to that link.
func link(ctx context.Context, tx transaction, h *chainHead, events []store.Event) error {
	if len(events) == 0 {
		return nil
	}
	now := time.Now()
	first := h.seq + 1
	rows := make([][]any, 0, len(events))
	var form []byte
	hours := make(map[int64]*[2]int64)
	for _, ev := range events {
		e, err := newEventRow(ev, now)
		if err != nil {
			return err
		}
		h.seq++
		e.Seq = h.seq
		at := micro(e.Time)
		h.time = max(h.time, at)
		h.disorder = max(h.disorder, h.time-at)
		form = e.appendTo(form)
		rows = append(rows, []any{e.Seq, at, e.Type, e.By, e.Serial, e.Identity, e.Repository, e.RunID, e.Rule, e.Reason, e.Count, e.detail})
		countHour(hours, &e)
	}
	h.hash = linkHash(h.hash, form)
	if err := tx.insert(ctx, tableEvents, rows); err != nil {
		return err
	}
	if err := tx.insert(ctx, tableLinks, [][]any{{h.seq, first, h.time, h.hash}}); err != nil {
		return err
	}
	for hour, n := range hours {
		if err := tx.do(ctx, `INSERT INTO hours (hour, issued, denied) VALUES ($1, $2, $3)
			ON CONFLICT (hour) DO UPDATE SET issued = hours.issued + excluded.issued, denied = hours.denied + excluded.denied`,
			hour, n[0], n[1]); err != nil {
			return err
		}
	}
	return nil
}

// countHour adds e to the count of its hour.
func countHour(hours map[int64]*[2]int64, e *eventRow) {
	which := 0
	switch e.Type {
	case store.EventIssued:
	case store.EventDenied, store.EventReplay:
		which = 1
	default:
		return
	}
	hour := micro(e.Time.Truncate(time.Hour))
	if hours[hour] == nil {
		hours[hour] = new([2]int64)
	}
	hours[hour][which] += e.Count
}

// Hours implements store.Store.
func (l *ledger) Hours(ctx context.Context, since time.Time) ([]store.HourCount, error) {
	return read(ctx, l, "count hours", func(r reader) ([]store.HourCount, error) {
		return collect(ctx, r, func(r row) (c store.HourCount, err error) {
			var hour int64
			err = r.Scan(&hour, &c.Issued, &c.Denied)
			c.Hour = fromMicro(hour)
			return c, err
		}, `SELECT hour, issued, denied FROM hours WHERE hour >= $1 ORDER BY hour`, micro(since.Truncate(time.Hour)))
	})
}

const eventColumns = `seq, time, type, actor, serial, identity, repository, run_id, rule, reason, count, detail`

func scanEvent(r row) (e eventRow, err error) {
	var at int64
	err = r.Scan(&e.Seq, &at, &e.Type, &e.By, &e.Serial, &e.Identity, &e.Repository, &e.RunID, &e.Rule, &e.Reason, &e.Count, &e.detail)
	e.Time = fromMicro(at)
	return e, err
}

// Events implements store.Store. It writes pending denials first, so that the list
// includes them.
func (l *ledger) Events(ctx context.Context, f store.EventFilter) ([]store.Event, string, error) {
	if err := l.denials.flush(ctx, false); err != nil {
		return nil, "", fmt.Errorf("list events: %w", err)
	}
	rows, next, err := list[eventRow]{
		name: "list events", scope: cursorScope("events", f.Type, f.Serial, f.Repository, f.RunID, timeText(f.Since), timeText(f.Until)),
		query: func(ctx context.Context, r reader, below *position, limit int) (*query, error) {
			return eventQuery(ctx, r, f, below, limit, l.dialect)
		},
		scan: scanEvent,
		end:  func(e eventRow) position { return position{e.Seq, ""} },
	}.page(ctx, l, f.Cursor, f.Limit)
	if err != nil {
		return nil, "", err
	}
	if f.After != 0 {
		next = ""
	}
	out := make([]store.Event, len(rows))
	for i := range rows {
		out[i] = rows[i].Event
		if rows[i].detail == "" {
			continue
		}
		if err := json.Unmarshal([]byte(rows[i].detail), &out[i].Detail); err != nil {
			return nil, "", fmt.Errorf("list events: event %d: %w", out[i].Seq, err)
		}
	}
	return out, next, nil
}

// eventQuery builds the query of a page, or returns nil for an empty page. It turns
// times into a range of seqs with the links, which are in the order of both.
func eventQuery(ctx context.Context, r reader, f store.EventFilter, below *position, limit int, d *dialect) (*query, error) {
	q := &query{}
	low, high, err := eventRange(ctx, r, f, q)
	if err != nil {
		return nil, err
	}
	direction := "DESC"
	switch {
	case f.After != 0:
		low, direction = max(low, f.After+1), "ASC"
	case below != nil:
		high = min(high, below.id)
	}
	if low >= high {
		return nil, nil
	}
	stretches, err := indexRanges(ctx, r, f, q)
	if err != nil || len(stretches) == 0 {
		return nil, err
	}
	q.where("seq >= "+q.arg(low), "seq < "+q.arg(high))
	pages := make([]string, len(stretches))
	for i, by := range stretches {
		pages[i] = q.page(d, "events", eventColumns, by, "seq", direction, limit)
	}
	q.text = strings.Join(pages, " UNION ALL ") + fmt.Sprintf(" ORDER BY seq %s LIMIT %d", direction, limit)
	return q, nil
}

// eventRange returns a range of seqs, low to before high, that holds the events in
// the times of f. It also adds the times to q.
func eventRange(ctx context.Context, r reader, f store.EventFilter, q *query) (low, high int64, _ error) {
	high = math.MaxInt64
	if f.Since != nil {
		found, err := queryRow(ctx, r, `SELECT first_seq FROM links WHERE newest >= $1 ORDER BY newest, last_seq LIMIT 1`, []any{micro(*f.Since)}, &low)
		if err != nil || !found {
			return 0, 0, err
		}
		q.where("time >= " + q.arg(micro(*f.Since)))
	}
	if f.Until != nil {
		var last, disorder int64
		if _, err := queryRow(ctx, r, `SELECT disorder FROM state`, nil, &disorder); err != nil {
			return 0, 0, err
		}
		found, err := queryRow(ctx, r, `SELECT last_seq FROM links WHERE newest >= $1 ORDER BY newest, last_seq LIMIT 1`, []any{micro(*f.Until) + disorder}, &last)
		if err != nil {
			return 0, 0, err
		}
		if found {
			high = last + 1
		}
		q.where("time < " + q.arg(micro(*f.Until)))
	}
	return low, high, nil
}

// isIssued is the column of the index events_repository that separates a
// repository's issuances, which are most of its events, from the others.
const isIssued = "(CASE WHEN type = 'issued' THEN 1 ELSE 0 END)"

// indexRanges chooses the index of a page and returns its ranges that hold the
// events of f. It adds to q the conditions that the ranges do not imply.
func indexRanges(ctx context.Context, r reader, f store.EventFilter, q *query) ([][]equal, error) {
	if f.Serial != "" {
		raw, err := parseSerial(f.Serial)
		if err != nil {
			return nil, nil // no event has such a serial
		}
		q.where("seq IN (SELECT seq FROM events WHERE serial = " + q.arg(f.Serial) + " AND serial <> '' AND type <> 'issued'" +
			" UNION ALL SELECT event_seq FROM certificates WHERE serial = " + q.arg(raw) + ")")
	}
	var by, rest []equal
	var fewest int64 = -1
	for _, c := range []equal{{"run_id", f.RunID}, {"repository", f.Repository}, {"type", f.Type}} {
		if c.value == "" {
			continue
		}
		n := int64(0)
		if several := f.RunID+f.Repository+f.Type != c.value; several && f.RunID != "" && f.Serial == "" {
			var err error
			if n, err = countRows(ctx, r, "events", c.column, c.value); err != nil {
				return nil, err
			}
		}
		if c.value = q.arg(c.value); f.Serial != "" || fewest >= 0 && n >= fewest {
			rest = append(rest, c)
			continue
		}
		rest = append(rest, by...)
		by, fewest = []equal{c}, n
	}
	stretches := [][]equal{by}
	switch {
	case len(by) == 0:
	case by[0].column != "repository":
		q.index = "events_" + by[0].column
	case f.Type == "":
		q.index = "events_repository"
		stretches = [][]equal{append(slices.Clone(by), equal{isIssued, "0"}), append(slices.Clone(by), equal{isIssued, "1"})}
	case f.Type == store.EventIssued:
		q.index = "events_repository"
		stretches = [][]equal{append(by, equal{isIssued, "1"})}
	default:
		q.index = "events_repository_type"
		q.where("type <> 'issued'") // condition of the partial index
		i := slices.IndexFunc(rest, func(c equal) bool { return c.column == "type" })
		stretches = [][]equal{append(by, rest[i])}
		rest = slices.Delete(rest, i, i+1)
	}
	if len(by) > 0 && by[0].column != "type" {
		q.where(by[0].column + " <> ''") // condition of the partial index
	}
	for _, c := range rest {
		q.where(c.column + " = " + c.value)
	}
	return stretches, nil
}

// VerifyEvents implements store.Store.
func (l *ledger) VerifyEvents(ctx context.Context) (int64, error) {
	return read(ctx, l, "verify events", func(r reader) (int64, error) { return verifyChain(ctx, r) })
}

// verifyChain walks every link from the checkpoint to the head.
func verifyChain(ctx context.Context, r reader) (int64, error) {
	h, err := readHead(ctx, r)
	if err != nil {
		return 0, err
	}
	at, hash := int64(0), make([]byte, 32)
	if _, err := queryRow(ctx, r, `SELECT seq, hash FROM checkpoints ORDER BY seq DESC LIMIT 1`, nil, &at, &hash); err != nil {
		return 0, err
	}
	start := at
	for {
		type storedLink struct {
			last, first int64
			hash        []byte
		}
		links, err := collect(ctx, r, func(r row) (l storedLink, err error) {
			err = r.Scan(&l.last, &l.first, &l.hash)
			return l, err
		}, `SELECT last_seq, first_seq, hash FROM links WHERE last_seq > $1 ORDER BY last_seq LIMIT 512`, at)
		if err != nil {
			return 0, err
		}
		if len(links) == 0 {
			break
		}
		events, err := collect(ctx, r, scanEvent,
			`SELECT `+eventColumns+` FROM events WHERE seq > $1 AND seq <= $2 ORDER BY seq`, at, links[len(links)-1].last)
		if err != nil {
			return 0, err
		}
		for _, k := range links {
			var form []byte
			want := at + 1
			for len(events) > 0 && events[0].Seq <= k.last {
				if events[0].Seq != want {
					break
				}
				form = events[0].appendTo(form)
				events = events[1:]
				want++
			}
			hash = linkHash(hash, form)
			if k.first != at+1 || want != k.last+1 || !bytes.Equal(hash, k.hash) {
				return 0, fmt.Errorf("link of events %d to %d is broken", k.first, k.last)
			}
			at = k.last
		}
	}
	if at != h.seq || !bytes.Equal(hash, h.hash) {
		return 0, fmt.Errorf("the chain ends with event %d, the newest was %d", at, h.seq)
	}
	var stray int64
	found, err := queryRow(ctx, r, `SELECT seq FROM events WHERE seq > $1 OR seq <= $2 ORDER BY seq LIMIT 1`, []any{at, start}, &stray)
	if err == nil && found {
		err = fmt.Errorf("event %d is in no link", stray)
	}
	return at - start, err
}
