// Package supervise runs the engine: it starts it apart from the sidecar,
// says when it answers, stops it in order and passes on how it ended.
//
// Apart means new mount, PID and IPC namespaces, and on cgroup v2 a cgroup with
// its namespace, made by executing the sidecar's own program again as a hidden
// subcommand (Child), which becomes the first process in there: it covers /.fly,
// mounts a fresh /proc and /sys/fs/cgroup, drops descriptors, starts the engine
// with an allow-listed environment, forwards signals, reaps orphans and ends with
// the engine's exit code. When the sidecar dies, however it dies, the kernel ends
// everything in there.
//
// What it does not stop: an engine taken over as full root can undo a mount.
// It then has what its machine has, its own engine's server identity.
//
// The package imports the standard library and x/sys. Keys, tokens and the
// network never enter it.
package supervise
