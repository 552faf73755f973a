package sidecar

import (
	"fmt"
	"syscall"
)

const (
	// filesPerRelay are a relay's descriptors: the client's and the engine's.
	filesPerRelay = 2
	// filesBeside are kept for everything else, handshakes among them.
	filesBeside = 64
)

// maxRelays is limits.connections, or fewer where the process may not have so
// many descriptors: a client that reads the reason "limit" waits, and one whose
// engine cannot be dialled loses its connection.
func (s *sidecar) maxRelays() int {
	want := s.cfg.Limits.Connections
	most := allowedRelays(want)
	if most < want {
		s.log.Warn("fewer connections than limits.connections: the limit of open files is too low",
			"connections", want, "allowed", most,
			"hint", fmt.Sprintf("raise the limit of open files to %d (ulimit -n), or lower limits.connections", want*filesPerRelay+filesBeside))
	}
	return most
}

// allowedRelays is want, or fewer where the process may not open so many files.
func allowedRelays(want int) int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return want
	}
	return relaysForFDs(files.Cur, want)
}

// relaysForFDs is how many relays fit a limit of descriptors, at least one and at
// most want.
func relaysForFDs(files uint64, want int) int {
	if files >= uint64(want)*filesPerRelay+filesBeside {
		return want
	}
	return max((int(files)-filesBeside)/filesPerRelay, 1)
}
