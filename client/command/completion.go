package command

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (completionCommand) Help() string {
	return `Put one of these lines where the shell reads it at its start:

	. <(${program} completion bash)                # ~/.bashrc
	. <(${program} completion zsh)                 # ~/.zshrc, after compinit
	${program} completion fish | source            # ~/.config/fish/config.fish`
}

// Run prints the script for a shell. The script asks the program for the possible
// words, so the two always agree.
func (c completionCommand) Run(k *kong.Context, p Program) error {
	_, err := io.WriteString(k.Stdout, strings.NewReplacer(
		"PROGRAM", p.Name, "FUNCTION", "_"+strings.ReplaceAll(p.Name, "-", "_")).Replace(completionScripts[c.Shell]))
	return err
}

// completionScripts call "PROGRAM __complete SHELL WORDS...". The last word is the
// one being typed. If the program has no candidates, the shell offers files.
var completionScripts = map[string]string{
	"bash": `FUNCTION() {
	local IFS=$'\n'
	COMPREPLY=($(PROGRAM __complete bash "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F FUNCTION PROGRAM
`,
	"zsh": `#compdef PROGRAM
FUNCTION() {
	local -a candidates
	candidates=("${(@f)$(PROGRAM __complete zsh "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n ${candidates[1]} ]]; then
		_describe PROGRAM candidates
	else
		_files
	fi
}
if [[ ${funcstack[1]} == FUNCTION ]]; then
	FUNCTION "$@"
else
	compdef FUNCTION PROGRAM
fi
`,
	"fish": `function FUNCTION
	set -l before (commandline -opc)
	set -l current (commandline -ct)
	set -q current[1]; or set current ''
	set -l candidates (PROGRAM __complete fish $before[2..-1] $current 2>/dev/null)
	if test (count $candidates) -gt 0
		printf '%s\n' $candidates
	else
		__fish_complete_path (commandline -ct)
	end
end
complete -c PROGRAM -f -a '(FUNCTION)'
`,
}

// completeCommand prints the possible next words, one on each line, in a shell's
// form.
type completeCommand struct {
	Words []string `arg:"" optional:""`
}

// Run prints the candidates.
func (c completeCommand) Run(k *kong.Context, p Program) error {
	if len(c.Words) == 0 {
		return nil
	}
	shell, words := c.Words[0], c.Words[1:]
	for _, candidate := range p.completions(k.Model.Node, words) {
		line := candidate.word
		switch shell {
		case "zsh": // word:help
			line = strings.ReplaceAll(line, ":", `\:`) + ":" + candidate.help
		case "fish":
			line += "\t" + candidate.help
		}
		if _, err := fmt.Fprintln(k.Stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// candidate is a possible next word.
type candidate struct{ word, help string }

// completions returns the possible completions of the last word: commands, flags,
// the values of a flag or argument that has a list of them, and topics. If the
// program knows none, it returns nothing.
func (p Program) completions(n *kong.Node, words []string) []candidate {
	var waiting *kong.Flag // the flag whose value comes next
	var last string
	positional := 0
	for i, word := range words {
		last = word
		switch {
		case word == "=" && waiting != nil: // bash gives --flag=value as three words
			last = ""
		case i == len(words)-1:
		case waiting != nil:
			waiting = nil
		case word == "--":
			return nil // the words of another program
		case strings.HasPrefix(word, "-"):
			if f := findFlag(n, word); f != nil && !f.IsBool() && !strings.Contains(word, "=") {
				waiting = f
			}
		default:
			if child := findNode(n, []string{word}); child != nil {
				n = child
				continue
			}
			positional++
		}
	}
	var all []candidate
	name, _, assigned := strings.Cut(last, "=")
	switch {
	case waiting != nil:
		all = values(waiting.Value)
	case strings.HasPrefix(last, "-") && assigned:
		if f := findFlag(n, name); f != nil {
			for _, c := range values(f.Value) {
				all = append(all, candidate{name + "=" + c.word, c.help})
			}
		}
	case strings.HasPrefix(last, "-"):
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				all = append(all, candidate{"--" + f.Name, summary(f.Help)})
			}
		}
	default:
		all = p.arguments(n, positional)
	}
	return slices.DeleteFunc(all, func(c candidate) bool { return !strings.HasPrefix(c.word, last) })
}

// arguments returns the commands below n, or the values of its argument.
func (p Program) arguments(n *kong.Node, positional int) []candidate {
	var all []candidate
	if n.Name == "help" {
		for _, t := range p.topics() {
			all = append(all, candidate{t.Name, t.Summary})
		}
		for n.Parent != nil {
			n = n.Parent
		}
	}
	for _, child := range n.Children {
		if !child.Hidden {
			all = append(all, candidate{child.Name, summary(child.Help)})
		}
	}
	if positional < len(n.Positional) {
		all = append(all, values(n.Positional[positional])...)
	}
	return all
}

// findFlag returns the flag with that name, of n or of a node above it.
func findFlag(n *kong.Node, word string) *kong.Flag {
	name, _, _ := strings.Cut(word, "=")
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			if name == "--"+f.Name || f.Short != 0 && name == "-"+string(f.Short) {
				return f
			}
		}
	}
	return nil
}

// values returns the words of an enum, and nothing for any other value.
func values(v *kong.Value) []candidate {
	var all []candidate
	for word := range strings.SplitSeq(v.Enum, ",") {
		if word != "" {
			all = append(all, candidate{word: word})
		}
	}
	return all
}

// summary returns the first sentence of a help text, without its full stop.
func summary(help string) string {
	first, _, _ := strings.Cut(help, ". ")
	return strings.TrimSuffix(first, ".")
}
