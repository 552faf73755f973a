package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
)

// column is one column of a table. To fit the terminal, a table first drops columns
// without text. Then it shrinks columns that have a Min, down to Min: first those
// that are Early, such as a serial, whose first digits are enough, then the others,
// the widest first. Then it drops columns that have a Drop, the highest first. If
// the last column is Wrap, it gets the remaining width and continues on lines
// below. An ID that a user must copy has no Min.
type column struct {
	Head  string
	Min   int
	Early bool
	Drop  int
	Wrap  bool
}

// cell is one value. Style is its colour, if colours are on.
type cell struct {
	Text  string
	Style *lipgloss.Style
}

func plain(s string) cell { return cell{Text: s} }

// table prints rows under their heads and fits them to the terminal, if there is
// one. It escapes the texts.
func (t *terminal) table(cols []column, rows [][]cell) {
	widths := make([]int, len(cols))
	for i, c := range cols {
		widths[i] = width(c.Head)
	}
	for _, row := range rows {
		for i := range row {
			row[i].Text = escapeText(row[i].Text)
			widths[i] = max(widths[i], width(row[i].Text))
		}
	}
	if t.outWidth > 0 {
		cols, widths, rows = withoutEmpty(cols, widths, rows)
		fitted := fit(cols, widths, t.outWidth, droppable(cols) < 0)
		for i := droppable(cols); fitted == nil && i >= 0; i = droppable(cols) {
			cols, widths, rows = without(i, cols, widths, rows)
			fitted = fit(cols, widths, t.outWidth, droppable(cols) < 0)
		}
		if fitted != nil {
			widths = fitted
		}
	}
	var b strings.Builder
	head := make([]cell, len(cols))
	for i, c := range cols {
		head[i] = cell{Text: c.Head, Style: &styleHead}
	}
	wrap := t.outWidth > 0 && cols[len(cols)-1].Wrap
	t.row(&b, head, widths, wrap)
	for _, row := range rows {
		t.row(&b, row, widths, wrap)
	}
	t.printf("%s", b.String())
}

// gap is the number of spaces between two columns.
const gap = 2

// leastWidth is the smallest width that still shows a useful text.
const leastWidth = 4

// wrapMin is the smallest width of a column that wraps.
const wrapMin = 24

// withoutEmpty removes columns in which no row has a text.
func withoutEmpty(cols []column, widths []int, rows [][]cell) ([]column, []int, [][]cell) {
	for i := len(cols) - 1; i >= 0; i-- {
		if len(cols) > 1 && !slices.ContainsFunc(rows, func(row []cell) bool { return row[i].Text != "" }) {
			cols, widths, rows = without(i, cols, widths, rows)
		}
	}
	return cols, widths, rows
}

// without removes column i.
func without(i int, cols []column, widths []int, rows [][]cell) ([]column, []int, [][]cell) {
	left := make([][]cell, len(rows))
	for n, row := range rows {
		left[n] = slices.Delete(slices.Clone(row), i, i+1)
	}
	return slices.Delete(slices.Clone(cols), i, i+1), slices.Delete(slices.Clone(widths), i, i+1), left
}

// droppable returns the column to drop first, or -1.
func droppable(cols []column) int {
	found := -1
	for i, c := range cols {
		if c.Drop > 0 && (found < 0 || c.Drop > cols[found].Drop) {
			found = i
		}
	}
	return found
}

// fit narrows the columns that may shrink until the row fits. It returns nil if
// the row cannot fit. With squeeze, columns that have a Min may shrink to leastWidth.
func fit(cols []column, widths []int, total int, squeeze bool) []int {
	widths = slices.Clone(widths)
	used := -gap
	for _, w := range widths {
		used += w + gap
	}
	last := len(cols) - 1
	for ; used > total; used-- {
		i := widest(cols, widths, minOf(true))
		if i < 0 && cols[last].Wrap && widths[last] > wrapMin {
			i = last
		}
		if i < 0 {
			i = widest(cols, widths, minOf(false))
		}
		if i < 0 && squeeze {
			i = widest(cols, widths, func(c column) int { return min(c.Min, leastWidth) })
		}
		if i < 0 {
			return nil
		}
		widths[i]--
	}
	return widths
}

// minOf returns the Min of columns that are Early, or of the others.
func minOf(early bool) func(column) int {
	return func(c column) int {
		if c.Early != early {
			return 0
		}
		return c.Min
	}
}

// widest returns the widest column that is wider than least allows, or -1. A column
// for which least returns 0 keeps its width.
func widest(cols []column, widths []int, least func(column) int) int {
	found := -1
	for i, c := range cols {
		if n := least(c); n > 0 && widths[i] > n && (found < 0 || widths[i] > widths[found]) {
			found = i
		}
	}
	return found
}

func (t *terminal) row(b *strings.Builder, cells []cell, widths []int, wrap bool) {
	var more []string // further lines of the last column
	for i, c := range cells {
		text := c.Text
		switch {
		case wrap && i == len(cells)-1:
			lines := wrapped(text, widths[i])
			text, more = lines[0], lines[1:]
		case t.outWidth > 0:
			text = cut(text, widths[i])
		}
		pad := widths[i] - width(text)
		if c.Style != nil {
			text = t.paint(*c.Style, text)
		}
		b.WriteString(text)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", max(0, pad)+gap))
		}
	}
	b.WriteByte('\n')
	indent := 0
	for _, w := range widths[:len(widths)-1] {
		indent += w + gap
	}
	for _, line := range more {
		b.WriteString(strings.Repeat(" ", indent) + line + "\n")
	}
}

// wrapped breaks s at spaces into lines of at most n columns. It breaks longer
// words anywhere.
func wrapped(s string, n int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(s) {
		last := len(lines) - 1
		if line := strings.TrimLeft(lines[last]+" "+word, " "); width(line) <= n {
			lines[last] = line
			continue
		}
		if lines[last] != "" {
			lines = append(lines, "")
			last++
		}
		for _, r := range word {
			if lines[last] != "" && width(lines[last]+string(r)) > n {
				lines = append(lines, "")
				last++
			}
			lines[last] += string(r)
		}
	}
	return lines
}

// fact is one line of a description.
type fact struct {
	Name, Text string
	Style      *lipgloss.Style
}

// facts prints names and texts in two columns and omits empty texts.
func (t *terminal) facts(indent string, list []fact) {
	w := 0
	for _, f := range list {
		if f.Text != "" {
			w = max(w, width(f.Name))
		}
	}
	for _, f := range list {
		if f.Text == "" {
			continue
		}
		text := escapeText(f.Text)
		if f.Style != nil {
			text = t.paint(*f.Style, text)
		}
		name := f.Name + strings.Repeat(" ", w-width(f.Name))
		t.printf("%s%s  %s\n", indent, t.paint(styleFaint, name), text)
	}
}

// moment formats a time for a table: relative on a terminal, otherwise RFC 3339.
func (t *terminal) moment(at time.Time) string {
	switch {
	case at.IsZero():
		return "-"
	case t.outWidth > 0:
		return relativeTime(t.now(), at)
	}
	return at.UTC().Format(time.RFC3339)
}

// instant formats a time for a description: RFC 3339, and relative on a terminal.
func (t *terminal) instant(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	s := at.UTC().Format(time.RFC3339)
	if t.outWidth > 0 {
		s += " (" + relativeTime(t.now(), at) + ")"
	}
	return s
}

// relativeTime returns the distance from now to at, in its largest unit.
func relativeTime(now, at time.Time) string {
	d := at.Sub(now)
	if d < 0 {
		return shortDuration(-d) + " ago"
	}
	return "in " + shortDuration(d)
}

func shortDuration(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
