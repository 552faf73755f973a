package storetest

import (
	"fmt"
	"testing"
	"time"
)

// Seeded is how many live sessions and blocks SeedSessions makes: more than a
// page of each.
const Seeded = 200

// SeedSessions adds a closed session for each of rows, of the repositories of
// Seed and over the same year, some live ones and some blocks, and the hours of
// the overview's chart.
func SeedSessions(b *testing.B, d Database, rows int) {
	now := time.Now().UnixMicro()
	const spacing = 31_000_000
	const columns = "INSERT INTO sessions SELECT "
	numbers := func(n int) string {
		return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < %d) ", n)
	}
	session := func(prefix, opened, closed string) string {
		return columns + "'" + prefix + "' || i, CASE WHEN i % 10 = 0 THEN 'other' ELSE 'default' END, 'spiffe://ci.example.com/engine/default/fly/2/m', 'serial' || i," +
			" 'run' || (i / 4) || '/1/1', 'run' || (i / 4), CASE WHEN i % 2 = 0 THEN 'octo/big' ELSE 'octo/r' || (i % 5000) END, 'spiffe://ci.example.com/github/1/' || (i % 5000)," +
			" '192.0.2.7:4242', 'end', " + opened + ", " + opened + " + 1000000, " + closed + ", i, i * 100 FROM n"
	}
	old := fmt.Sprintf("(%d - (%d - i) * %d)", now-60_000_000, rows, spacing)
	d.Exec(b, numbers(rows)+session("c", old, old+" + 600000000"))
	// Live for as long as a benchmark may run: seen ahead of now.
	d.Exec(b, numbers(Seeded)+session("l", fmt.Sprintf("(%d - i)", now), "0"))
	d.Exec(b, fmt.Sprintf("UPDATE sessions SET seen_at = %d WHERE closed_at = 0", now+int64(time.Hour/time.Microsecond)))
	d.Exec(b, numbers(Seeded)+fmt.Sprintf("INSERT INTO blocks SELECT 'b' || i, %d - i, %d, '{\"run_id\":\"run' || i || '\"}', 'why', 'ann' FROM n",
		now, now+int64(24*time.Hour/time.Microsecond)))
	d.Exec(b, numbers(48)+fmt.Sprintf("INSERT INTO hours SELECT %d - i * 3600000000, i * 1000, i * 3 FROM n WHERE true ON CONFLICT DO NOTHING",
		time.Now().Truncate(time.Hour).UnixMicro()))
	d.Exec(b, "ANALYZE")
}
