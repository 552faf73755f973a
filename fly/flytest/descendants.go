package flytest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// processes maps process ids of this host to start times, since ids are used again.
type processes map[int]string

// goneWithin bounds the wait for the processes of a killed machine.
const goneWithin = 10 * time.Second

// descendants returns the processes below pid, or none on a system without /proc.
func descendants(pid int) processes {
	children := map[int][]int{}
	starts := processes{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		of, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		parent, start := look(of)
		children[parent] = append(children[parent], of)
		starts[of] = start
	}
	found := processes{}
	next := children[pid]
	for len(next) > 0 {
		of := next[0]
		next = append(next[1:], children[of]...)
		found[of] = starts[of]
	}
	return found
}

// look returns a process's parent and start time (proc(5), stat). They are 0 and ""
// if the process is gone or dead.
func look(pid int) (parent int, start string) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, ""
	}
	// The name, in brackets, may contain anything; the state follows it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return 0, ""
	}
	if threads := fields[17]; fields[0] == "Z" && (threads == "0" || threads == "1") {
		return 0, "" // its files close only with its last thread
	}
	parent, _ = strconv.Atoi(fields[1])
	return parent, fields[19]
}

// wait returns when all processes are gone, or after goneWithin.
func (p processes) wait() {
	for deadline := time.Now().Add(goneWithin); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		left := false
		for pid, start := range p {
			_, now := look(pid)
			left = left || now != "" && now == start
		}
		if !left {
			return
		}
	}
}
