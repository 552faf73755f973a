package cli

// disableDumps does nothing: macOS gives a process's memory only to programs with
// the debug entitlement, and dumps no core by default.
func disableDumps() error { return nil }
