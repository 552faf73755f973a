package cli

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode"
)

// daggerWait bounds how long the dagger program may take to print its version.
// daggerOutput bounds its output.
const (
	daggerWait   = 5 * time.Second
	daggerOutput = 4 << 10
)

// compareDagger returns the version that the engine reported, as text to follow the
// engine's name. It warns if the local dagger program has another version. It
// compares nothing if the engine reported nothing or is not Dagger's.
func (p *program) compareDagger(ctx context.Context, engine, reported string) string {
	if reported == "" {
		return ""
	}
	text := " runs " + reported
	theirs := daggerTag(reported)
	if theirs == "" {
		return text
	}
	ours := daggerVersion(ctx)
	switch ours {
	case "":
		return text
	case theirs:
		return text + ", as dagger here,"
	}
	p.warn("dagger is %s here, and engine %s runs %s: install dagger %s, or have the engine's image changed to %s", ours, engine, theirs, theirs, ours)
	return text
}

// daggerTag returns the version that a Dagger engine reports: v1.2.3, or an image's
// NAME:v1.2.3. It returns "" for another engine or another kind of tag.
func daggerTag(reported string) string {
	name, tag, named := strings.Cut(reported, ":")
	if !named {
		name, tag = "", reported
	}
	if strings.Contains(name, "buildkit") || !isReleaseTag(tag) {
		return ""
	}
	return tag
}

// isReleaseTag reports whether s begins with v and a digit and has only the
// characters of a version.
func isReleaseTag(s string) bool {
	return len(s) > 1 && s[0] == 'v' && s[1] >= '0' && s[1] <= '9' && strings.IndexFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(".-+", r)
	}) < 0
}

// daggerVersion returns the version of the dagger program in PATH, or "" if there is
// none or it does not print one.
func daggerVersion(ctx context.Context) string {
	path, err := exec.LookPath("dagger")
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, daggerWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "version")
	cmd.Env = append(os.Environ(), "DAGGER_NO_UPDATE_CHECK=1", "DO_NOT_TRACK=1")
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &limitedWriter{&out, daggerOutput}
	if cmd.Run() != nil {
		return ""
	}
	return parseDaggerVersion(out.String())
}

// parseDaggerVersion parses the output of dagger version: "dagger v0.21.8
// (image://registry.dagger.io/engine:v0.21.8) linux/amd64".
func parseDaggerVersion(text string) string {
	words := strings.Fields(text)
	if len(words) < 2 || words[0] != "dagger" || !isReleaseTag(words[1]) {
		return ""
	}
	return words[1]
}

// limitedWriter writes the first left bytes and discards the rest.
type limitedWriter struct {
	to   *bytes.Buffer
	left int
}

func (w *limitedWriter) Write(b []byte) (int, error) {
	n, err := w.to.Write(b[:min(len(b), w.left)])
	w.left -= n
	return len(b), err
}
