package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// row identifies a line of the table.
type row struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
}

// result holds the samples of one server for one row, in the order of the
// rounds.
type result struct {
	row
	Server  string    `json:"server"`
	Median  float64   `json:"median"`
	Samples []float64 `json:"samples"`
}

// bound is a bound from DESIGN and whether it holds.
type bound struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Want  string  `json:"want"`
	Holds bool    `json:"holds"`
}

// report holds all results of a run.
type report struct {
	Machine string            `json:"machine"`
	Servers []string          `json:"servers"`
	Version map[string]string `json:"versions"`
	Rounds  int               `json:"rounds"`
	Results []*result         `json:"results"`
	Bounds  []bound           `json:"bounds"`
}

func newReport(o options) *report {
	return &report{Machine: machine(), Rounds: o.rounds, Version: map[string]string{}}
}

func (r *report) add(s *server, line row, value float64) {
	if _, known := r.Version[s.name]; !known {
		r.Servers = append(r.Servers, s.name)
		r.Version[s.name] = s.version
	}
	res := r.find(line.Name, s.name)
	if res == nil {
		res = &result{row: line, Server: s.name}
		r.Results = append(r.Results, res)
	}
	res.Samples = append(res.Samples, value)
	res.Median = median(res.Samples)
}

func (r *report) find(name, server string) *result {
	i := slices.IndexFunc(r.Results, func(res *result) bool { return res.Name == name && res.Server == server })
	if i < 0 {
		return nil
	}
	return r.Results[i]
}

// rows returns the lines in the order of their first sample.
func (r *report) rows() []row {
	var rows []row
	for _, res := range r.Results {
		if !slices.Contains(rows, res.row) {
			rows = append(rows, res.row)
		}
	}
	return rows
}

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// ratio returns the median of mayfly's value divided by the other server's,
// round by round. Within a round, both have the same conditions.
func (r *report) ratio(name, server string) (float64, bool) {
	own, other := r.find(name, mayfly), r.find(name, server)
	if own == nil || other == nil || len(own.Samples) != len(other.Samples) {
		return 0, false
	}
	ratios := make([]float64, len(own.Samples))
	for i := range ratios {
		ratios[i] = own.Samples[i] / other.Samples[i]
	}
	return median(ratios), true
}

// Bounds from DESIGN section 8.
const (
	leastSpeed = 0.97 // as a share of the bare loop's speed
	mostMemory = 50.0 // KB per idle relay
)

// judge compares the results with the bounds.
func (r *report) judge(o options) {
	for _, line := range r.rows() {
		switch {
		case line.Unit == "GB/s":
			if v, ok := r.ratio(line.Name, bareGo); ok {
				r.Bounds = append(r.Bounds, bound{line.Name + ", of bare Go's", v, fmt.Sprintf(">= %.2f", leastSpeed), v >= leastSpeed})
			}
		case line.Unit == "s/GB", line.Name == "handshakes, 1 client: CPU", line.Name == "handshakes, 16 clients: CPU":
			for _, peer := range []string{ghostunnel, haproxy, nginx} {
				if v, ok := r.ratio(line.Name, peer); ok {
					r.Bounds = append(r.Bounds, bound{line.Name + ", of " + peer + "'s", v, "<= 1.00", v <= 1})
				}
			}
		case strings.HasPrefix(line.Name, "memory"):
			if res := r.find(line.Name, mayfly); res != nil {
				r.Bounds = append(r.Bounds, bound{line.Name + ", KB", res.Median, fmt.Sprintf("<= %.0f", mostMemory), res.Median <= mostMemory})
			}
		case slices.ContainsFunc(allEndings, func(e ending) bool { return e.name == line.Name }):
			if res := r.find(line.Name, mayfly); res != nil {
				r.Bounds = append(r.Bounds, bound{line.Name + ", lost", res.Median, "0", res.Median == 0})
			}
		}
	}
}

func (r *report) hold() bool {
	return !slices.ContainsFunc(r.Bounds, func(b bound) bool { return !b.Holds })
}

// cells returns the table, with its header first.
func (r *report) cells() [][]string {
	head := []string{fmt.Sprintf("median of %d", r.Rounds), ""}
	for _, s := range r.Servers {
		head = append(head, s+" "+r.Version[s])
	}
	table := [][]string{head}
	for _, line := range r.rows() {
		cells := []string{line.Name, line.Unit}
		for _, s := range r.Servers {
			cell := ""
			if res := r.find(line.Name, s); res != nil {
				cell = number(res.Median)
			}
			cells = append(cells, cell)
		}
		table = append(table, cells)
	}
	return table
}

func (r *report) boundCells() [][]string {
	table := [][]string{{"bound", "found", "want", ""}}
	for _, b := range r.Bounds {
		verdict := "holds"
		if !b.Holds {
			verdict = "DOES NOT HOLD"
		}
		table = append(table, []string{b.What, number(b.Value), b.Want, verdict})
	}
	return table
}

// number formats v with three significant digits, and no decimals from 100 on.
func number(v float64) string {
	switch {
	case v == math.Trunc(v) && v >= 0 && v < 100: // a count
		return fmt.Sprintf("%.0f", v)
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *report) text(w io.Writer) error {
	fmt.Fprintf(w, "%s\n\n", r.Machine)
	for _, table := range [][][]string{r.cells(), r.boundCells()} {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, cells := range table {
			fmt.Fprintln(t, strings.Join(cells, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	return nil
}

func (r *report) markdown(w io.Writer) error {
	fmt.Fprintf(w, "%s\n", r.Machine)
	for _, table := range [][][]string{r.cells(), r.boundCells()} {
		fmt.Fprintln(w)
		for i, cells := range table {
			fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
			if i == 0 {
				fmt.Fprintln(w, strings.Repeat("|---", len(cells))+"|")
			}
		}
	}
	return nil
}

// machine describes this machine.
func machine() string {
	model := runtime.GOARCH
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, after, ok := bytes.Cut(data, []byte("model name\t: ")); ok {
			line, _, _ := bytes.Cut(after, []byte("\n"))
			model = string(line)
		}
	}
	memory, kernel := uint64(0), ""
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		memory = info.Totalram * uint64(info.Unit)
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Release[:])
	}
	return fmt.Sprintf("%d cores of %s, %d GiB, Linux %s, %s", runtime.NumCPU(), model, (memory+1<<29)>>30, kernel, goVersion())
}

func goVersion() string { return runtime.Version() }
