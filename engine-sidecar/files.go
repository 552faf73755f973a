package sidecar

import "syscall"

const (
	// filesPerRelay are a relay's descriptors: the client's and the engine's.
	filesPerRelay = 2
	// filesBeside are kept for everything else, handshakes among them.
	filesBeside = 64
)

// maxRelays is limits.connections, or fewer where the process may not have so
// many descriptors: a client that is told "limit" waits, and one whose engine
// cannot be dialled is hung up on.
func (s *sidecar) maxRelays() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		s.log.Warn("limit of open files unknown", "error", err)
		return s.cfg.Limits.Connections
	}
	most := relaysWithin(files.Cur, s.cfg.Limits.Connections)
	if most < s.cfg.Limits.Connections {
		s.log.Warn("limits.connections is more than the limit of open files allows (ulimit -n)",
			"connections", s.cfg.Limits.Connections, "open_files", files.Cur, "allowed", most)
	}
	return most
}

// relaysWithin is how many relays fit a limit of descriptors, at least one and at
// most want.
func relaysWithin(files uint64, want int) int {
	if files >= uint64(want)*filesPerRelay+filesBeside {
		return want
	}
	return max((int(files)-filesBeside)/filesPerRelay, 1)
}
