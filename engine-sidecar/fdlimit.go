package sidecar

import (
	"fmt"
	"syscall"
)

const (
	// filesPerRelay is the number of descriptors per relay: the client's and
	// the engine's.
	filesPerRelay = 2
	// filesBeside is the number of descriptors kept for everything else, such
	// as handshakes.
	filesBeside = 64
)

// maxRelays returns limits.connections, or fewer if the process has too few
// descriptors. A client with the reason "limit" waits and tries again; without
// a descriptor for the engine it would lose its connection.
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

// allowedRelays returns want, or fewer if the process may not open so many
// files.
func allowedRelays(want int) int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return want
	}
	return relaysForFDs(files.Cur, want)
}

// relaysForFDs returns how many relays a limit of descriptors allows, at least
// one and at most want.
func relaysForFDs(files uint64, want int) int {
	if files >= uint64(want)*filesPerRelay+filesBeside {
		return want
	}
	return max((int(files)-filesBeside)/filesPerRelay, 1)
}
