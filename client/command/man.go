package command

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

type manCommand struct{}

func (manCommand) Help() string {
	return `The page has every command, flag and topic of this program, made from the same definitions as its help.`
}

// Run prints the program's manual page in the macros of man(7).
func (manCommand) Run(k *kong.Context, p Program) error {
	root := k.Model.Node
	var m manual
	m.macro("TH", strings.ToUpper(p.Name), "1", "", p.Name+" "+ReadBuild().Version, "mayfly")
	m.macro("SH", "NAME")
	m.text(p.Name + " - " + p.Summary)
	m.macro("SH", "SYNOPSIS")
	m.text(p.Name + " command [flags]")
	m.macro("SH", "DESCRIPTION")
	m.prose(p.Description)
	m.macro("SH", "COMMANDS")
	for _, leaf := range root.Leaves(true) {
		m.command(leaf)
	}
	m.macro("SH", "GLOBAL FLAGS")
	m.flags(root.Flags)
	m.macro("SH", "EXIT STATUS")
	m.verbatim(exitCodes)
	if p.Epilog != "" {
		m.macro("SH", "FURTHER")
		m.verbatim(strings.TrimLeft(p.Epilog, "\n"))
	}
	for _, t := range p.topics()[1:] {
		m.macro("SH", strings.ToUpper(t.Name))
		m.verbatim(t.Text)
	}
	_, err := io.WriteString(k.Stdout, p.named(m.String()))
	return err
}

// manual is the page in progress.
type manual struct {
	bytes.Buffer
}

// macro writes a request with its arguments. Each argument is one word for roff.
func (m *manual) macro(name string, args ...string) {
	m.WriteString("." + name)
	for _, a := range args {
		m.WriteString(` "` + strings.ReplaceAll(escaped(a), `"`, `\(dq`) + `"`)
	}
	m.WriteByte('\n')
}

// text writes one line of running text.
func (m *manual) text(s string) {
	s = escaped(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	m.WriteString(s + "\n")
}

// escaped returns s escaped for roff.
func escaped(s string) string { return strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s) }

// prose writes paragraphs. Lines that begin with a tab are examples.
func (m *manual) prose(s string) {
	for i, paragraph := range strings.Split(strings.Trim(s, "\n"), "\n\n") {
		if strings.HasPrefix(paragraph, "\t") {
			m.macro("PP")
			m.verbatim(paragraph)
			continue
		}
		if i > 0 {
			m.macro("PP")
		}
		for line := range strings.SplitSeq(paragraph, "\n") {
			m.text(strings.TrimSpace(line))
		}
	}
}

// verbatim writes lines unchanged.
func (m *manual) verbatim(s string) {
	m.macro("nf")
	for line := range strings.SplitSeq(strings.Trim(s, "\n"), "\n") {
		m.text(strings.Replace(line, "\t", "    ", 1))
	}
	m.macro("fi")
}

// command writes one command with its arguments and flags.
func (m *manual) command(n *kong.Node) {
	m.macro("SS", n.FullPath()+strings.TrimPrefix(n.Summary(), n.Path()))
	m.prose(n.Help + "\n\n" + n.Detail)
	var own []*kong.Flag
	for at := n; at.Type != kong.ApplicationNode; at = at.Parent {
		own = append(own, at.Flags...)
	}
	for _, arg := range n.Positional {
		if arg.Help != "" {
			m.item(arg.Summary(), arg.Help)
		}
	}
	m.flags(own)
}

func (m *manual) flags(flags []*kong.Flag) {
	for _, f := range flags {
		if f.Hidden {
			continue
		}
		help := f.Help
		for _, env := range f.Envs {
			help += fmt.Sprintf(" Environment: %s.", env)
		}
		if f.HasDefault && f.Default != "" && !f.IsBool() {
			help += fmt.Sprintf(" Default: %s.", f.Default)
		}
		m.item(f.String(), help)
	}
}

// item writes a term with its explanation.
func (m *manual) item(term, text string) {
	m.macro("TP")
	m.WriteString(`\fB` + escaped(term) + "\\fR\n")
	m.text(text)
}
