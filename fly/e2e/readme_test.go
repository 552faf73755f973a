package e2e

import (
	"encoding/csv"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// readmeCommands returns fly/README.md's commands: the indented lines, with
// continued lines joined.
func readmeCommands(t *testing.T) []string {
	t.Helper()
	var commands []string
	text := strings.ReplaceAll(string(read(t, "README.md")), "\\\n", "")
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if command, ok := strings.CutPrefix(line, "    "); ok && !fenced {
			commands = append(commands, strings.Join(strings.Fields(command), " "))
		}
	}
	return commands
}

// flyctl maps the flyctl commands of fly/README.md to their flags, from flyctl's
// source (superfly/flyctl ad0172fac, internal/command).
var flyctl = map[string]string{
	"apps create": "org network", "ips allocate-v4": "shared app", "ips allocate-v6": "app private org region",
	"volumes create": "app region size scheduled-snapshots", "secrets set": "stage app",
	"deploy": "config ha env build-arg app image wait-timeout yes", "logs": "app no-tail",
	"machine restart": "app force", "machine start": "app", "machine list": "app json", "machine destroy": "force app", "machine run": "app region volume",
	"ssh console": "app C", "ssh sftp get": "app", "ssh sftp put": "app", "scale count": "app",
}

var (
	flagName   = regexp.MustCompile(`^--?([a-zA-Z][a-z0-9-]*)`)
	pieceOfCmd = regexp.MustCompile("[`|<()]|\\$\\(| -C \"/usr")
)

// TestReadmeFly checks each flyctl command in the guide and its text against that
// command's flags.
func TestReadmeFly(t *testing.T) {
	t.Parallel()
	found := 0
	for line := range strings.Lines(strings.ReplaceAll(string(read(t, "README.md")), "\\\n", "")) {
		for _, piece := range pieceOfCmd.Split(line, -1) {
			words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(piece), "timeout 30 "))
			if len(words) < 3 || words[0] != "fly" {
				continue
			}
			known, ok := "", false
			for n := min(len(words), 4); n > 1 && !ok; n-- {
				known, ok = flyctl[strings.Join(words[1:n], " ")]
			}
			if !ok {
				t.Errorf("unknown: %s", piece)
			}
			found++
			for _, word := range words {
				if f := flagName.FindStringSubmatch(word); f != nil && !slices.Contains(strings.Fields(known), f[1]) {
					t.Errorf("no flag %s: %s", word, piece)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d of flyctl's commands were found: the test reads the guide wrongly", found)
	}
}

// TestReadmeCommands follows fly/README.md without Fly's own part: the CA, the
// policy, the store of a machine, a backup, its restoration and a rotation. It runs
// each command of our programs as written, except for paths and names.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	need(t, exec.Command("bash", "-c", "true").Run() == nil, "the guide's commands are for a shell: apt-get install bash")
	g := &guide{dir: filepath.Join(t.TempDir(), "clone"), commands: readmeCommands(t), done: map[int]bool{}}
	copyTree(t, "../issuer", filepath.Join(g.dir, "fly", "issuer"))
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	g.run(t, "go build -o bin/", "go build", "go -C "+root+" build", "-o bin/", "-o "+filepath.Join(g.dir, "bin")+"/")

	said := g.run(t, "bin/mayfly-issuer init")
	anchor := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(said)
	password := regexp.MustCompile(`(?m)^\s+([a-z0-9-]{20,})\s*$`).FindStringSubmatch(said)
	if anchor == "" || password == nil {
		t.Fatalf("init tells no trust anchor and no password:\n%s", said)
	}
	g.run(t, "cp ../mayfly-ca/issuer/")
	g.run(t, "bin/mayfly-issuer policy check")

	// The machine: the deployment of step 8, and its volume.
	machine := filepath.Join(g.dir, "machine")
	copyTree(t, filepath.Join(g.dir, "fly", "issuer"), filepath.Join(machine, "etc"))
	conf := strings.NewReplacer("/data/", filepath.Join(machine, "data")+"/", "run_as:", "# run_as:").Replace(string(read(t, "issuer/issuer.yaml")))
	writeFile(t, filepath.Join(machine, "etc", "issuer.yaml"), conf)
	if err := os.Mkdir(filepath.Join(machine, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(g.dir, "..", "mayfly-ca", "issuer", "intermediate.key"))
	if err != nil {
		t.Fatal(err)
	}
	stateKey, err := os.ReadFile(filepath.Join(g.dir, "..", "mayfly-ca", "issuer", "state.key"))
	if err != nil {
		t.Fatal(err)
	}
	g.env = append(os.Environ(), "MAYFLY_CA_KEY="+string(key), "MAYFLY_STATE_KEY="+string(stateKey))
	g.shell(t, "bin/mayfly-issuer store create --config machine/etc/issuer.yaml")

	inside := []string{"/usr/local/bin/", "bin/", "/etc/mayfly", "machine/etc", "/data", "machine/data"}
	g.runInside(t, "backup", inside...)
	g.shell(t, "mv machine/data/backup backup-2026-11-24")
	g.shell(t, `sed 's|^store:.*|store: `+filepath.Join(g.dir, "restored")+`|' ../mayfly-ca/issuer/issuer.yaml >../mayfly-ca/issuer/restore.yaml`)
	g.run(t, "bin/mayfly-issuer restore", "restore.yaml", "../mayfly-ca/issuer/restore.yaml")
	g.shell(t, "bin/mayfly-issuer verify --config ../mayfly-ca/issuer/restore.yaml")

	requested := g.run(t, "bin/mayfly-issuer rotate request")
	request := regexp.MustCompile(`\S+\.csr`).FindString(requested)
	if request == "" {
		t.Fatalf("rotate request prints no request:\n%s", requested)
	}
	g.stdin = password[1] + "\n"
	g.run(t, "bin/mayfly-issuer rotate sign", "MEDIUM/root", "../mayfly-ca/root", "REQUEST", request)
	g.run(t, "bin/mayfly-issuer rotate install")

	for i, command := range g.commands {
		if (strings.HasPrefix(command, "bin/") || strings.Contains(command, "/usr/local/bin/mayfly")) && !g.done[i] {
			t.Errorf("never run: %s", command)
		}
	}
}

// guide is a reader who follows fly/README.md.
type guide struct {
	dir      string // the reader's clone
	commands []string
	done     map[int]bool
	env      []string
	stdin    string
}

// run runs the guide's command that begins with prefix, after the replacements.
func (g *guide) run(t *testing.T, prefix string, replacements ...string) string {
	t.Helper()
	i := slices.IndexFunc(g.commands, func(c string) bool { return strings.HasPrefix(c, prefix) })
	if i < 0 {
		t.Fatalf("the guide has no command %q", prefix)
	}
	g.done[i] = true
	return g.shell(t, strings.NewReplacer(replacements...).Replace(g.commands[i]))
}

// runInside runs the command that `fly ssh console -C` would run on the machine.
func (g *guide) runInside(t *testing.T, name string, replacements ...string) {
	t.Helper()
	i := slices.IndexFunc(g.commands, func(c string) bool {
		return strings.HasPrefix(c, "fly ssh console") && strings.Contains(c, "mayfly-issuer "+name)
	})
	if i < 0 {
		t.Fatalf("the guide runs no %s on the machine", name)
	}
	g.done[i] = true
	_, command, _ := strings.Cut(g.commands[i], ` -C "`)
	g.shell(t, strings.NewReplacer(replacements...).Replace(strings.TrimSuffix(command, `"`)))
}

func (g *guide) shell(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euc", command)
	cmd.Dir, cmd.Env, cmd.Stdin = g.dir, g.env, strings.NewReader(g.stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// TestReadmeCosts recomputes the guide's tables with its own formula and prices.
func TestReadmeCosts(t *testing.T) {
	t.Parallel()
	prices := map[string]float64{"performance-1x": 0.000012732, "performance-2x": 0.000025464, "performance-4x": 0.000050928}
	text := string(read(t, "README.md"))
	for engine, price := range prices {
		_, kind, _ := strings.Cut(engine, "performance")
		if !regexp.MustCompile(regexp.QuoteMeta(kind) + `/\d GB ` + regexp.QuoteMeta(strconv.FormatFloat(price, 'f', -1, 64)) + `\b`).MatchString(text) {
			t.Errorf("the price of %s is another", engine)
		}
	}
	idle := sidecarConfig(t, load(t, "engine/fly.toml")).IdleExit
	if idle != time.Minute {
		t.Errorf("the formula has a minute of idle_exit, and it is %s", idle)
	}
	compute := func(price, builds, minutes float64) float64 { return price * builds * 60 * (minutes + 1) }
	engine, rows := "", 0
	for _, row := range tableRows(t, text) {
		if name, _, ok := strings.Cut(row[0], ","); ok && prices[name] != 0 {
			engine = name
		}
		minutes, err := strconv.ParseFloat(row[min(1, len(row)-1)], 64)
		if err != nil || engine == "" || len(row) != 5 {
			continue
		}
		rows++
		for i, builds := range []float64{60, 220, 1000} {
			costs(t, row[2+i], compute(prices[engine], builds, minutes))
		}
	}
	if rows != 9 {
		t.Errorf("the table has %d rows that the test reads", rows)
	}
	// The published set-up also has an address, a volume of 10 GB, and a machine
	// that Fly stops after five minutes.
	const published = 2.00 + 0.15*10
	const withIssuer = published + 0.15*1
	p := prices["performance-2x"]
	for prefix, want := range map[string][]float64{
		"published set-up":            {published, published + p*60*60*(4+5), published + p*220*60*(4+5)},
		"mayfly, dedicated IPv4":      {withIssuer, withIssuer + compute(p, 60, 4), withIssuer + compute(p, 220, 4)},
		"mayfly, Fly's TLS (`fly.edg": {withIssuer - 2, withIssuer - 2 + compute(p, 60, 4), withIssuer - 2 + compute(p, 220, 4)},
	} {
		i := slices.IndexFunc(tableRows(t, text), func(row []string) bool { return strings.HasPrefix(row[0], prefix) })
		if i < 0 {
			t.Errorf("no row %q", prefix)
			continue
		}
		for j, sum := range want {
			costs(t, tableRows(t, text)[i][1+j], sum)
		}
	}
}

// tableRows returns the cells of all tables.
func tableRows(t *testing.T, text string) [][]string {
	t.Helper()
	var rows [][]string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		r := csv.NewReader(strings.NewReader(strings.Trim(strings.TrimSpace(line), "|")))
		r.Comma, r.LazyQuotes = '|', true
		cells, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

func costs(t *testing.T, cell string, want float64) {
	t.Helper()
	got, err := strconv.ParseFloat(strings.TrimPrefix(cell, "$"), 64)
	if err != nil || math.Abs(got-want) > 0.0051 {
		t.Errorf("%s, and the formula gives %s", cell, fmt.Sprintf("$%.2f", want))
	}
}
