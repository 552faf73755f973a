package flytest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// OIDC mints the machine's tokens from claims that override its defaults.
// idtokentest's Fly provider implements it.
type OIDC interface {
	Mint(overrides map[string]any) (string, error)
}

// MachineConfig describes a machine. App and Command are required.
type MachineConfig struct {
	App *App
	// Command is the image's entrypoint. Its process gets kill_signal.
	Command []string
	// Env holds KEY=VALUE secrets and overrides of the file's [env].
	Env []string
	// OIDC mints the tokens of /.fly/api. If it is nil, there are none.
	OIDC OIDC
	// Claims override the provider's defaults. The machine itself sets aud and the
	// claims that name the machine.
	Claims map[string]any
	// Dir is the folder of the API socket. The path of a unix socket must be
	// shorter than 108 bytes. If Dir is empty, a new temporary folder is used.
	Dir string
	// ID is 14 hex digits by default. Region defaults to primary_region or iad,
	// Organization to example-org.
	ID, Region, Organization string
	// Addresses maps an internal_port to the command's real address, since machines
	// share this host. The default is 127.0.0.1 and the port itself.
	Addresses map[int]string
	// PrivateIP is FLY_PRIVATE_IP. The default is 127.0.0.1, where a command may
	// listen.
	PrivateIP string
	// KillTimeout, if not zero, replaces the file's.
	KillTimeout time.Duration
	// RestartDelay is the wait before each restart. Zero means 200 ms.
	RestartDelay time.Duration
	// HostRoot runs the command in this host's own root folder, where /.fly is not
	// the machine's. The command finds the socket at APISocket. Otherwise a root
	// process gets its own root folder; for other users, HostRoot is always set.
	HostRoot bool
	// Stdout and Stderr receive the command's output. Nil discards it.
	Stdout, Stderr io.Writer
	// Logger logs changes of state. Nil discards them.
	Logger *slog.Logger
}

// State is a machine's state, in Fly's words.
type State string

// States of a machine.
const (
	StateCreated   State = "created"
	StateStarting  State = "starting"
	StateStarted   State = "started"
	StateStopping  State = "stopping"
	StateStopped   State = "stopped"
	StateDestroyed State = "destroyed"
)

// Machine is one Fly Machine, made by NewMachine. Close ends it.
type Machine struct {
	cfg    MachineConfig
	env    []string
	log    *slog.Logger
	api    *http.Server
	ownDir bool // Close removes it
	tasks  sync.WaitGroup

	mu      sync.Mutex
	state   State
	changed chan struct{} // closed at a change of state, then replaced
	since   time.Time     // of the state
	process *os.Process   // of the started command
	halt    *halt         // of the current life: set to stop it
	code    int           // exit code of the last command
	starts  int           // times that Start started the machine
	runs    int           // times that the command ran
}

// halt is the order to end a machine's life: by signal, or by force.
type halt struct {
	once, forceOnce sync.Once
	done, forced    chan struct{}
}

func newHalt() *halt { return &halt{done: make(chan struct{}), forced: make(chan struct{})} }

func (h *halt) order() { h.once.Do(func() { close(h.done) }) }

func (h *halt) force() {
	h.forceOnce.Do(func() { close(h.forced) })
	h.order()
}

// NewMachine makes a machine with its API socket. The machine is not started.
func NewMachine(cfg MachineConfig) (*Machine, error) {
	switch {
	case cfg.App == nil || len(cfg.Command) == 0:
		return nil, errors.New("flytest: a machine wants an App and a Command")
	case len(cfg.App.Files) > 0:
		return nil, errors.New("flytest: [[files]] are not written here")
	}
	m := &Machine{cfg: cfg, state: StateCreated, changed: make(chan struct{}), since: time.Now(), log: cfg.Logger}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "fly-")
		if err != nil {
			return nil, fmt.Errorf("flytest: %w", err)
		}
		m.cfg.Dir, m.ownDir = dir, true
	}
	m.fillIn()
	if err := m.serveAPI(); err != nil {
		m.removeDir()
		return nil, fmt.Errorf("flytest: %w", err)
	}
	m.log = m.log.With("machine", m.cfg.ID)
	return m, nil
}

// fillIn sets the defaults that Fly would set.
func (m *Machine) fillIn() {
	c := &m.cfg
	if c.ID == "" {
		id := make([]byte, 7)
		rand.Read(id)
		c.ID = hex.EncodeToString(id)
	}
	for _, d := range []struct {
		field *string
		value string
	}{{&c.Region, c.App.PrimaryRegion}, {&c.Region, "iad"}, {&c.Organization, "example-org"}, {&c.PrivateIP, "127.0.0.1"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.KillTimeout == 0 {
		c.KillTimeout = c.App.KillTimeout()
	}
	if c.RestartDelay == 0 {
		c.RestartDelay = 200 * time.Millisecond
	}
	c.HostRoot = c.HostRoot || os.Geteuid() != 0 || !ownRootPossible
	m.env = c.environ()
}

// environ returns the command's whole environment: PATH and HOME of this process,
// the file's [env], Env, and Fly's own variables, which win.
func (c *MachineConfig) environ() []string {
	values := map[string]string{"PATH": os.Getenv("PATH"), "HOME": "/root"}
	if c.HostRoot {
		values["HOME"] = os.Getenv("HOME")
	}
	maps.Copy(values, c.App.Env)
	for _, entry := range c.Env {
		if name, value, ok := strings.Cut(entry, "="); ok {
			values[name] = value
		}
	}
	maps.Copy(values, map[string]string{
		"FLY_APP_NAME": c.App.Name, "FLY_MACHINE_ID": c.ID, "FLY_ALLOC_ID": c.ID,
		"FLY_REGION": c.Region, "PRIMARY_REGION": c.App.PrimaryRegion,
		"FLY_PRIVATE_IP": c.PrivateIP, "FLY_PUBLIC_IP": "2001:db8::1",
		"FLY_IMAGE_REF":     "registry.fly.io/" + c.App.Name + ":flytest",
		"FLY_PROCESS_GROUP": "app", "FLY_VM_MEMORY_MB": c.App.memoryMB(),
		"FLY_MACHINE_VERSION": machineVersion,
	})
	env := make([]string, 0, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		env = append(env, name+"="+values[name])
	}
	return env
}

// machineVersion is a ULID, as Fly's are.
const machineVersion = "01HTGGC1TZ2JHK83J4AC0R3VET"

// memoryMB returns the file's memory, or the least memory of its size. Without
// either, it is that of Fly's smallest machine.
func (a *App) memoryMB() string {
	if len(a.VM) == 0 {
		return "256"
	}
	v := a.VM[0]
	if mb, err := megabytes(v.Memory); err == nil {
		return strconv.Itoa(mb)
	}
	if v.MemoryMB > 0 {
		return strconv.Itoa(v.MemoryMB)
	}
	kind, cpus := v.CPUKind, v.CPUs
	if m := vmSize.FindStringSubmatch(v.Size); m != nil {
		kind = strings.TrimSuffix(m[1], "-cpu")
		cpus, _ = strconv.Atoi(m[2])
	}
	least := 256
	if kind == "performance" {
		least = 2048
	}
	return strconv.Itoa(least * max(cpus, 1))
}

// App returns the machine's app. ID returns the machine's name.
func (m *Machine) App() *App  { return m.cfg.App }
func (m *Machine) ID() string { return m.cfg.ID }

// Address returns the command's address for an internal port.
func (m *Machine) Address(internalPort int) string {
	if addr, ok := m.cfg.Addresses[internalPort]; ok {
		return addr
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(internalPort))
}

// State returns the current state.
func (m *Machine) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// ExitCode returns the exit code of the last command that ended, or 128 + signal if
// a signal ended it.
func (m *Machine) ExitCode() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.code
}

// Starts returns how often the machine was started. Restarts of the command within
// one life do not count.
func (m *Machine) Starts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.starts
}

// Runs returns how often the command ran, restarts included.
func (m *Machine) Runs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runs
}

// PID returns the process id of the running command, or 0.
func (m *Machine) PID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil {
		return 0
	}
	return m.process.Pid
}

// Wait waits until the machine is in one of the states (default: stopped). If ctx
// ends first, it returns the current state with an error.
func (m *Machine) Wait(ctx context.Context, states ...State) (State, error) {
	if len(states) == 0 {
		states = []State{StateStopped}
	}
	for {
		state, changed := m.look()
		if slices.Contains(states, state) {
			return state, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state, fmt.Errorf("machine %s is %s: %w", m.cfg.ID, state, ctx.Err())
		}
	}
}

func (m *Machine) look() (State, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, m.changed
}

// turn sets the state. The caller holds mu.
func (m *Machine) turn(s State) {
	if m.state == s {
		return
	}
	m.state, m.since = s, time.Now()
	close(m.changed)
	m.changed = make(chan struct{})
	m.log.Info("machine "+string(s), "exit_code", m.code)
}

// Start starts a machine that is created or stopped. It returns when the command
// runs or could not run. It does nothing for a running machine, and waits for one
// that is stopping.
func (m *Machine) Start(ctx context.Context) error {
	for {
		m.mu.Lock()
		switch m.state {
		case StateStarted:
			m.mu.Unlock()
			return nil
		case StateDestroyed:
			m.mu.Unlock()
			return errors.New("machine is destroyed")
		case StateCreated, StateStopped:
			m.starts++
			m.halt = newHalt()
			launched := make(chan error, 1)
			m.turn(StateStarting)
			m.tasks.Add(1)
			go m.live(m.halt, launched)
			m.mu.Unlock()
			select {
			case err := <-launched:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// live runs the command, and again if the restart policy says so, until it may end
// or halt is ordered. It sends the result of the first start to launched.
func (m *Machine) live(h *halt, launched chan<- error) {
	defer m.tasks.Done()
	policy := m.cfg.App.RestartPolicy()
	for retries := 0; ; retries++ {
		command, err := m.launch()
		if retries == 0 {
			launched <- err
		}
		if err != nil {
			m.log.Error("command not started", "error", err)
			m.end(127)
			return
		}
		halted := m.attend(command, h)
		again := policy.Policy == "always" || policy.Policy == "on-failure" && command.code != 0 && retries < policy.Retries
		if halted || !again {
			m.end(command.code)
			return
		}
		m.mu.Lock()
		m.process, m.code = nil, command.code
		m.turn(StateStarting)
		m.mu.Unlock()
		select {
		case <-h.done:
			m.end(command.code)
			return
		case <-time.After(m.cfg.RestartDelay):
		}
	}
}

// attend waits for the command's end. It stops the command when halt is ordered.
func (m *Machine) attend(c *command, h *halt) (halted bool) {
	m.mu.Lock()
	m.process = c.process
	m.runs++
	m.turn(StateStarted)
	m.mu.Unlock()
	select {
	case <-c.done:
		return false
	case <-h.done:
	}
	m.mu.Lock()
	m.turn(StateStopping)
	m.mu.Unlock()
	select {
	case <-h.forced:
	default:
		_ = c.process.Signal(m.killSignal())
	}
	timer := time.NewTimer(m.cfg.KillTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-h.forced:
		c.killAll()
	case <-timer.C:
		m.log.Warn("kill_timeout has passed", "kill_timeout", m.cfg.KillTimeout)
		c.killAll()
	}
	return true
}

func (m *Machine) end(code int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.process, m.code = nil, code
	m.turn(StateStopped)
}

func (m *Machine) killSignal() os.Signal {
	for name, sig := range map[string]os.Signal{
		"SIGTERM": syscall.SIGTERM, "SIGQUIT": syscall.SIGQUIT, "SIGUSR1": syscall.SIGUSR1,
		"SIGUSR2": syscall.SIGUSR2, "SIGKILL": syscall.SIGKILL, "SIGSTOP": syscall.SIGSTOP,
	} {
		if name == m.cfg.App.KillSignal {
			return sig
		}
	}
	return syscall.SIGINT
}

// Stop sends kill_signal, kills after kill_timeout, and returns when the
// machine is stopped, or ctx ends. No restart follows.
func (m *Machine) Stop(ctx context.Context) error {
	if !m.orderHalt((*halt).order) {
		return nil
	}
	_, err := m.Wait(ctx, StateStopped, StateDestroyed)
	return err
}

// orderHalt orders the current life to end. It returns false if there is none.
func (m *Machine) orderHalt(order func(*halt)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.state {
	case StateCreated, StateStopped, StateDestroyed:
		return false
	}
	order(m.halt)
	return true
}

// Kill ends the machine like a power failure: with no signal that the command could
// catch, and no restart. It returns when the machine is stopped.
func (m *Machine) Kill() {
	if m.orderHalt((*halt).force) {
		_, _ = m.Wait(context.Background())
	}
}

// Close stops the machine by force, if it still runs, and removes it with its
// socket.
func (m *Machine) Close() error {
	m.Kill()
	m.mu.Lock()
	m.turn(StateDestroyed)
	m.mu.Unlock()
	err := m.api.Close()
	m.tasks.Wait()
	m.removeDir()
	return err
}

func (m *Machine) removeDir() {
	_ = os.RemoveAll(filepath.Join(m.cfg.Dir, apiFolder))
	_ = os.Remove(filepath.Join(m.cfg.Dir, rootFolder))
	if m.ownDir {
		_ = os.Remove(m.cfg.Dir)
	}
}
