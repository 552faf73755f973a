package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// engineCommand runs this program as the engine.
const engineCommand = "__engine"

// standIn returns the command of an engine that echoes.
func standIn(socket string) []string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return []string{self, engineCommand, socket}
}

// serveEngine echoes on a socket until SIGTERM, and prints when it began and
// when it listened.
func serveEngine(socket string) int {
	began := time.Now()
	_ = os.Remove(socket) // of the previous start
	ln, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("engine listens at %s, began at %s\n", time.Now().Format(time.RFC3339Nano), began.Format(time.RFC3339Nano))
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 512)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil && err != io.EOF {
						return
					}
				}
			}()
		}
	}()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
	return 0
}
