package cli

import (
	"fmt"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
)

// column is one column of a table. Only columns with a Min shrink: first those
// that are Early, such as a serial, whose beginning will do, then the others,
// the widest first, down to Min, and on a terminal too narrow for that down to
// leastWidth.
type column struct {
	Head  string
	Min   int
	Early bool
}

// cell is one value; Style colours it where colours are on.
type cell struct {
	Text  string
	Style *lipgloss.Style
}

func plain(s string) cell { return cell{Text: s} }

// table prints rows under their heads, fitted to the terminal if there is one.
// Texts are made harmless here.
func (t *terminal) table(cols []column, rows [][]cell) {
	widths := make([]int, len(cols))
	for i, c := range cols {
		widths[i] = width(c.Head)
	}
	for _, row := range rows {
		for i := range row {
			row[i].Text = visible(row[i].Text)
			widths[i] = max(widths[i], width(row[i].Text))
		}
	}
	if t.outWidth > 0 {
		fit(cols, widths, t.outWidth)
	}
	var b strings.Builder
	head := make([]cell, len(cols))
	for i, c := range cols {
		head[i] = cell{Text: c.Head, Style: &styleHead}
	}
	t.row(&b, head, widths)
	for _, row := range rows {
		t.row(&b, row, widths)
	}
	t.printf("%s", b.String())
}

// gap stands between two columns.
const gap = 2

// leastWidth is a width that still shows something.
const leastWidth = 4

// fit takes columns from those that may shrink until the row fits.
func fit(cols []column, widths []int, total int) {
	used := -gap
	for _, w := range widths {
		used += w + gap
	}
	for ; used > total; used-- {
		i := widest(cols, widths, minOf(true))
		if i < 0 {
			i = widest(cols, widths, minOf(false))
		}
		if i < 0 {
			i = widest(cols, widths, func(c column) int { return min(c.Min, leastWidth) })
		}
		if i < 0 {
			return
		}
		widths[i]--
	}
}

// minOf is the Min of columns that are Early, or of the others.
func minOf(early bool) func(column) int {
	return func(c column) int {
		if c.Early != early {
			return 0
		}
		return c.Min
	}
}

// widest is the widest column above the width that least allows it, or -1;
// where that is 0 the column keeps its width.
func widest(cols []column, widths []int, least func(column) int) int {
	found := -1
	for i, c := range cols {
		if n := least(c); n > 0 && widths[i] > n && (found < 0 || widths[i] > widths[found]) {
			found = i
		}
	}
	return found
}

func (t *terminal) row(b *strings.Builder, cells []cell, widths []int) {
	for i, c := range cells {
		text := c.Text
		if t.outWidth > 0 {
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
}

// fact is one line of a description.
type fact struct {
	Name, Text string
	Style      *lipgloss.Style
}

// facts prints names and texts in two columns; empty texts are left out.
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
		text := visible(f.Text)
		if f.Style != nil {
			text = t.paint(*f.Style, text)
		}
		name := f.Name + strings.Repeat(" ", w-width(f.Name))
		t.printf("%s%s  %s\n", indent, t.paint(styleFaint, name), text)
	}
}

// moment writes a time in a table: how far away on a terminal, RFC 3339 else.
func (t *terminal) moment(at time.Time) string {
	switch {
	case at.IsZero():
		return "-"
	case t.outWidth > 0:
		return apart(t.now(), at)
	}
	return at.UTC().Format(time.RFC3339)
}

// instant writes a time in a description: exactly, and how far away.
func (t *terminal) instant(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	s := at.UTC().Format(time.RFC3339)
	if t.outWidth > 0 {
		s += " (" + apart(t.now(), at) + ")"
	}
	return s
}

// apart says how far at lies from now, in its largest unit.
func apart(now, at time.Time) string {
	d := at.Sub(now)
	if d < 0 {
		return span(-d) + " ago"
	}
	return "in " + span(d)
}

func span(d time.Duration) string {
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
