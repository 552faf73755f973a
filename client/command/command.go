// Package command has the parts of the command line that the three programs share:
// argument parsing, help and its topics, shell completion, manual pages, the
// version, the log on stderr, and exit codes.
//
// It imports kong and no other package of this module. Package client and its
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

// Stdio has the streams that a program reads and writes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Program describes a program.
type Program struct {
	Name        string // the name of the command: mayfly-issuer
	Summary     string // a description in a few words
	Description string // begins the program's help
	Epilog      string // ends the program's help, after the exit codes
	Groups      []kong.Group
	Topics      []Topic // in addition to the topics of all programs
	// LogFormat is the default of --log-format. Empty means text on a terminal,
	// json elsewhere.
	LogFormat string
}

// Common has the commands and flags of all programs. A grammar embeds it and adds
// Version as its command version.
type Common struct {
	Log
	ShowVersion versionFlag `help:"Print the version." name:"version" group:"global"`

	Help       helpCommand       `cmd:"" help:"Explain a command or a topic." group:"about"`
	Completion completionCommand `cmd:"" help:"Print the script with which a shell completes commands and flags." group:"about"`
	Man        manCommand        `cmd:"" help:"Print the manual page: ${program} man | man -l -" group:"about"`
	Complete   completeCommand   `cmd:"" name:"__complete" hidden:"" passthrough:""`
}

// Parse parses args, without the program's name, into grammar, a pointer to a struct
// in kong's form. The context is nil if Parse printed help or the version and
// nothing is left to do. An error is a *UsageError.
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

// refuseEmpty refuses an empty value of a required flag or argument: --dir "$DIR"
// with DIR unset names no folder.
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

// parser returns kong for this program's grammar.
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

// decodePath makes a path absolute. Kong's own type path reads an empty value, such
// as that of an unset variable, as the working folder.
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

// help prints kong's help with two changes: flags come before the command that
// follows --, and the program's help ends with surroundings.
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

// named replaces ${program} by the program's name in a shared text.
func (p Program) named(s string) string { return strings.ReplaceAll(s, "${program}", p.Name) }

// surroundings returns the end of the program's own help.
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
