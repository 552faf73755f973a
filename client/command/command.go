// Package command is what the three programs have in common on the command
// line: how arguments are read and refused, help and its topics, completion in
// shells, manual pages, the version, the log on stderr, and exit codes.
//
// It imports kong and no other room of this module. Package client and what it
// imports must not import it.
package command

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"
)

// Stdio is what a program reads and writes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Program is what a program says about itself.
type Program struct {
	Name        string // as it is called: mayfly-issuer
	Summary     string // what it is, in a few words
	Description string // begins the help of the program
	Epilog      string // ends the help of the program, after the exit codes
	Groups      []kong.Group
	Topics      []Topic // in addition to those that all programs have
	// LogFormat says what --log-format means when it is left out. Empty: text on
	// a terminal, json elsewhere.
	LogFormat string
}

// Common are the commands and flags that every program has. A grammar embeds it
// and adds Version as its command version.
type Common struct {
	Log
	ShowVersion versionFlag `help:"Print the version." name:"version" group:"global"`

	Help       helpCommand       `cmd:"" help:"Explain a command or a topic." group:"about"`
	Completion completionCommand `cmd:"" help:"Print the script with which a shell completes commands and flags." group:"about"`
	Man        manCommand        `cmd:"" help:"Print the manual page: ${program} man | man -l -" group:"about"`
	Complete   completeCommand   `cmd:"" name:"__complete" hidden:"" passthrough:""`
}

// Parse reads args, without the program's name, into grammar, which points to a
// struct of kong's form. The context is nil when nothing is left to do: help or
// the version was printed. An error is a *UsageError.
func (p Program) Parse(grammar any, args []string, s Stdio) (*kong.Context, error) {
	left := false // kong has printed help or version
	parser, err := p.parser(grammar, s, func(int) { left = true })
	if err != nil {
		return nil, err
	}
	if len(args) == 0 {
		parser.Stdout = s.Err
		_, _ = parser.Parse([]string{"--help"})
		return nil, p.usageError(errors.New("no command is given"))
	}
	k, err := parser.Parse(args)
	if left {
		return nil, nil
	}
	if err == nil {
		err = refuseEmpty(k)
	}
	if err != nil {
		return nil, p.usageError(err)
	}
	return k, nil
}

// refuseEmpty refuses an empty value of a flag or argument that is needed:
// --dir "$DIR" with DIR unset names no folder.
func refuseEmpty(k *kong.Context) error {
	for _, at := range k.Path {
		var v *kong.Value
		switch {
		case at.Flag != nil:
			v = at.Flag.Value
		case at.Positional != nil:
			v = at.Positional
		default:
			continue
		}
		// Kong makes no element of an empty value of a list.
		if kind := v.Target.Kind(); !v.Required || kind != reflect.String && kind != reflect.Slice || v.Target.Len() > 0 {
			continue
		}
		if at.Flag != nil {
			return fmt.Errorf("--%s is empty", at.Flag.Name)
		}
		return fmt.Errorf("<%s> is empty", v.Name)
	}
	return nil
}

// parser is kong for this program's grammar.
func (p Program) parser(grammar any, s Stdio, exit func(int)) (*kong.Kong, error) {
	format := p.LogFormat
	if format == "" {
		format = "text on a terminal, json elsewhere"
	}
	return kong.New(grammar,
		kong.Name(p.Name), kong.Description(p.Description),
		kong.Writers(s.Out, s.Err), kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, WrapUpperBound: 100}),
		kong.Help(p.help),
		kong.ExplicitGroups(append(p.Groups,
			kong.Group{Key: "about", Title: "About " + p.Name + ":"}, kong.Group{Key: "global", Title: "Global flags:"})),
		kong.NamedMapper("path", kong.MapperFunc(decodePath)),
		kong.Vars{"log_format": format, "program": p.Name},
		kong.Bind(p),
	)
}

// decodePath makes a path absolute. Kong's own type path takes an empty value,
// as of a variable that is not set, for the working folder.
func decodePath(ctx *kong.DecodeContext, target reflect.Value) error {
	var path string
	if err := ctx.Scan.PopValueInto("file", &path); err != nil {
		return err
	}
	if path != "" && path != "-" {
		path = kong.ExpandPath(path)
	}
	target.SetString(path)
	return nil
}

// help prints kong's help with what kong does not know: flags stand before the
// command that follows --, and what surrounds the program.
func (p Program) help(o kong.HelpOptions, ctx *kong.Context) error {
	var text bytes.Buffer
	out := ctx.Stdout
	ctx.Stdout = &text
	err := kong.DefaultHelpPrinter(o, ctx)
	ctx.Stdout = out
	s := text.String()
	if n := ctx.Selected(); n == nil {
		at := max(strings.LastIndex(s, "\nRun \""+p.Name), 0)
		s = s[:at] + p.surroundings() + s[at:]
	} else if len(n.Positional) == 1 && n.Positional[0].Passthrough {
		arg := strings.Trim(n.Positional[0].Summary(), "[]")
		s = strings.Replace(s, " ["+arg+"] [flags]", " [flags] -- "+arg, 1)
	}
	_, werr := io.WriteString(out, p.named(s))
	return errors.Join(err, werr)
}

// named writes the program's name where a text that all programs share has none.
func (p Program) named(s string) string { return strings.ReplaceAll(s, "${program}", p.Name) }

// surroundings ends the help of the program itself.
func (p Program) surroundings() string {
	var b strings.Builder
	b.WriteString("\nExit codes:\n" + exitCodes)
	b.WriteString(p.Epilog)
	b.WriteString("\nTopics, each shown by \"" + p.Name + " help TOPIC\":\n")
	for _, t := range p.topics() {
		fmt.Fprintf(&b, "  %-20s  %s\n", t.Name, t.Summary)
	}
	return b.String()
}
