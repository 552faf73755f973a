package command

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// Topic is a help page that belongs to no command.
type Topic struct {
	Name    string // as the user types it: exit-codes
	Summary string // one line
	Text    string
}

// topics returns the topics of this program.
func (p Program) topics() []Topic {
	return append([]Topic{{"exit-codes", "what each exit code means", exitCodes}}, p.Topics...)
}

// exitCodeMeanings is the table of exit codes of the three programs.
var exitCodeMeanings = []struct {
	code    int
	meaning string
}{
	{ExitOK, "done; of mayfly-sidecar run: stopped, or idle"},
	{ExitFailed, "failed, for none of the reasons below"},
	{ExitUsage, "the command line is wrong"},
	{ExitDenied, "the issuer's policy does not admit it"},
	{ExitIssuer, "the issuer cannot be reached or is overloaded: the same call may succeed later"},
	{ExitEngine, "the engine cannot be reached, or refuses"},
}

// exitCodes is the text of the topic exit-codes.
var exitCodes = func() string {
	var b strings.Builder
	for _, e := range exitCodeMeanings {
		fmt.Fprintf(&b, "  %d    %s\n", e.code, e.meaning)
	}
	return b.String() + `  mayfly exec ends with its command's own code, and mayfly-sidecar run with its
  engine's where the engine ends by itself: 128+N when signal N killed it.
`
}()

type helpCommand struct {
	Topic []string `arg:"" optional:"" help:"A command, or a topic."`
}

// Run prints the help of a command, or a topic.
func (c helpCommand) Run(k *kong.Context, p Program) error {
	words := c.Topic
	if len(words) == 1 {
		for _, t := range p.topics() {
			if t.Name == words[0] {
				_, err := io.WriteString(k.Stdout, t.Text)
				return err
			}
		}
	}
	if findNode(k.Model.Node, words) == nil {
		var names []string
		for _, t := range p.topics() {
			names = append(names, t.Name)
		}
		return &UsageError{What: fmt.Sprintf("there is no command or topic %q", strings.Join(words, " ")),
			Hint: "`" + p.Name + " --help` lists the commands; topics: " + strings.Join(names, ", "), Err: errors.New("no such topic")}
	}
	_, _ = k.Kong.Parse(append(words, "--help")) // Parse prints the help and calls kong.Exit
	return nil
}

// findNode follows command names from n. It returns nil if a name does not exist.
func findNode(n *kong.Node, names []string) *kong.Node {
	for _, name := range names {
		var next *kong.Node
		for _, child := range n.Children {
			if child.Name == name && !child.Hidden {
				next = child
			}
		}
		if n = next; n == nil {
			return nil
		}
	}
	return n
}
