// Package supervise runs the engine: it starts it in isolation from the
// sidecar, detects when it is ready, stops it and returns its exit code.
//
// An isolated engine has new mount, PID and IPC namespaces. On cgroup v2 it
// also has its own cgroup and cgroup namespace. The sidecar executes its own
// program again as a hidden subcommand (Child), which becomes the first
// process of the namespaces. It hides /.fly, mounts a fresh /proc and
// /sys/fs/cgroup, and drops descriptors. It starts the engine with an
// allow-listed environment, forwards signals, reaps orphans and ends with the
// engine's exit code. When the sidecar dies, for any reason, the kernel kills
// all processes in the namespaces.
//
// What this does not prevent: an attacker with full root in the engine can
// undo a mount. The attacker then gains what the machine has: this engine's
// server identity.
//
// The package imports the standard library and x/sys. It handles no keys,
// tokens or network connections.
package supervise
