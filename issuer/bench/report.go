package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// report is the result of a run: medians over its rounds.
type report struct {
	Machine     string    `json:"machine"`
	CPUs        int       `json:"cpus"` // shared by servers and clients
	Rounds      int       `json:"rounds"`
	Turn        string    `json:"turn"`
	FloorMicros float64   `json:"floor_us"` // CPU of the cryptography alone
	Servers     []line    `json:"servers"`
	Bounds      []verdict `json:"bounds"`
}

// line is the result of one server.
type line struct {
	Name          string  `json:"name"`
	Stores        string  `json:"stores"`
	TLS           bool    `json:"tls"`
	Loads         []load  `json:"loads"`
	Issued        int64   `json:"issued"`
	StoredBytes   float64 `json:"stored_bytes,omitempty"` // per certificate, on the disk
	ColdMillis    float64 `json:"cold_ms,omitempty"`      // exec to first certificate
	ColdMaxMillis float64 `json:"cold_max_ms,omitempty"`
}

// load is the result of one server at a number of clients.
type load struct {
	Clients   int     `json:"clients"`
	PerSecond float64 `json:"per_second"`
	P50Millis float64 `json:"p50_ms"`
	P99Millis float64 `json:"p99_ms"`
	CPUMicros float64 `json:"cpu_us"`              // of the server, per certificate
	DBMicros  float64 `json:"db_cpu_us,omitempty"` // of its database server
	RSSBytes  float64 `json:"rss_bytes"`           // of the server
}

// verdict is a bound of the design and the measured value.
type verdict struct {
	What     string  `json:"what"`
	Measured float64 `json:"measured"`
	Unit     string  `json:"unit"` // "x", "ms"
	Bound    float64 `json:"bound"`
	AtMost   bool    `json:"at_most"` // false means at least
	Aim      float64 `json:"aim,omitempty"`
	Holds    bool    `json:"holds"`
}

// judge fills Bounds from the measured values. It leaves out bounds without one.
func (r *report) judge() {
	const many = 64
	at := func(name string) (load, bool) {
		for _, s := range r.Servers {
			for _, l := range s.Loads {
				if s.Name == name && l.Clients == many {
					return l, true
				}
			}
		}
		return load{}, false
	}
	add := func(v verdict) {
		v.Holds = v.Measured >= v.Bound
		if v.AtMost {
			v.Holds = v.Measured <= v.Bound
		}
		r.Bounds = append(r.Bounds, v)
	}
	for _, c := range []struct {
		own, peer        string
		bound, aim, tail float64
	}{
		{"mayfly-sqlite", "step-ca-badger", 1.5, 2, 0.5},
		{"mayfly-sqlite", "step-ca-bbolt", 3.5, 5, 0.5},
		{"mayfly-sqlite", "fulcio", 1, 1.5, 0},
		{"mayfly-postgres", "step-ca-postgres", 7, 10, 0.5},
	} {
		own, ok := at(c.own)
		peer, there := at(c.peer)
		if !ok || !there {
			continue
		}
		add(verdict{What: c.own + " / " + c.peer + ", certificates per second, 64 clients", Measured: own.PerSecond / peer.PerSecond, Unit: "x", Bound: c.bound, Aim: c.aim})
		if c.tail > 0 {
			add(verdict{What: c.own + " / " + c.peer + ", p99, 64 clients", Measured: own.P99Millis / peer.P99Millis, Unit: "x", Bound: c.tail, AtMost: true})
		}
	}
	for _, s := range r.Servers {
		if s.Name != "mayfly-sqlite" && s.Name != "mayfly-postgres" {
			continue
		}
		if l, ok := at(s.Name); ok && r.FloorMicros > 0 {
			add(verdict{What: s.Name + " / crypto floor, CPU per certificate, 64 clients", Measured: l.CPUMicros / r.FloorMicros, Unit: "x", Bound: 3, Aim: 2, AtMost: true})
		}
		if s.ColdMillis > 0 {
			add(verdict{What: s.Name + ", cold start to first certificate, median", Measured: s.ColdMillis, Unit: "ms", Bound: 100, AtMost: true})
		}
	}
}

func (r *report) write(w io.Writer, format string) error {
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	case "markdown":
		t := &table{w: w, markdown: true}
		r.tables(t)
		return t.err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	t := &table{w: tw}
	r.tables(t)
	if t.err != nil {
		return t.err
	}
	return tw.Flush()
}

// tables writes three tables: servers under load, servers, and bounds.
func (r *report) tables(t *table) {
	t.text("%s, %d processors for servers and clients together; medians of %d rounds, %s a turn.", r.Machine, r.CPUs, r.Rounds, r.Turn)
	t.text("Crypto floor (RS256 verify, request verify, P-256 sign): %.0f us of CPU.", r.FloorMicros)
	t.row("server", "clients", "per second", "p50 ms", "p99 ms", "CPU us", "database CPU us", "RSS MB")
	t.rule(8)
	for _, s := range r.Servers {
		for _, l := range s.Loads {
			db := "-"
			if l.DBMicros > 0 {
				db = fmt.Sprintf("%.0f", l.DBMicros)
			}
			t.row(s.Name, fmt.Sprint(l.Clients), fmt.Sprintf("%.0f", l.PerSecond), fmt.Sprintf("%.2f", l.P50Millis), fmt.Sprintf("%.2f", l.P99Millis),
				fmt.Sprintf("%.0f", l.CPUMicros), db, fmt.Sprintf("%.0f", l.RSSBytes/(1<<20)))
		}
	}
	t.gap()
	t.row("server", "stores", "bytes per certificate", "cold start ms", "slowest ms")
	t.rule(5)
	for _, s := range r.Servers {
		stored, cold, slowest := "-", "-", "-"
		if s.StoredBytes > 0 {
			stored = fmt.Sprintf("%.0f", s.StoredBytes)
		}
		if s.ColdMillis > 0 {
			cold, slowest = fmt.Sprintf("%.0f", s.ColdMillis), fmt.Sprintf("%.0f", s.ColdMaxMillis)
		}
		t.row(s.Name, s.Stores, stored, cold, slowest)
	}
	if len(r.Bounds) == 0 {
		return
	}
	t.gap()
	t.row("bound", "measured", "wanted", "aim", "")
	t.rule(5)
	for _, b := range r.Bounds {
		sign, aim, holds := ">=", "", "holds"
		if b.AtMost {
			sign = "<="
		}
		if b.Aim > 0 {
			aim = fmt.Sprintf("%s %g%s", sign, b.Aim, b.Unit)
		}
		if !b.Holds {
			holds = "MISSED"
		}
		t.row(b.What, fmt.Sprintf("%.2f%s", b.Measured, b.Unit), fmt.Sprintf("%s %g%s", sign, b.Bound, b.Unit), aim, holds)
	}
}

// table writes rows as aligned text or as Markdown, and keeps the first error.
type table struct {
	w        io.Writer
	markdown bool
	err      error
}

func (t *table) print(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format, args...)
	}
}

// text writes a separate line, before the tables.
func (t *table) text(format string, args ...any) {
	t.print(format+"\n", args...)
	if t.markdown {
		t.gap()
	}
}

func (t *table) gap() { t.print("\n") }

func (t *table) row(cells ...string) {
	for i, c := range cells {
		switch {
		case t.markdown && i == 0:
			t.print("| %s |", c)
		case t.markdown:
			t.print(" %s |", c)
		default:
			t.print("%s\t", c)
		}
	}
	t.print("\n")
}

// rule writes the line between the head and the rows of a Markdown table.
func (t *table) rule(columns int) {
	if !t.markdown {
		return
	}
	t.print("|---|")
	for range columns - 1 {
		t.print("---:|")
	}
	t.print("\n")
}
