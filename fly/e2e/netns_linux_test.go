package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// netns is a network namespace for one test. It has no name: only this process's
// descriptor and the programs inside keep it. So nothing is left when both are
// gone, however they ended.
type netns struct {
	t  *testing.T
	fd int
}

// newNetns makes a namespace with its loopback up. Addresses of 127.0.0.0/8 may be
// on other devices there, since the issuer certifies itself only for such
// addresses.
func newNetns(t *testing.T) *netns {
	t.Helper()
	n := &netns{t: t, fd: -1}
	var err error
	onThreadOfItsOwn(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
	})
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { unix.Close(n.fd) })
	n.run("ip", "link", "set", "lo", "up")
	n.within(func() {
		for _, which := range []string{"all", "default"} {
			err = errors.Join(err, os.WriteFile("/proc/sys/net/ipv4/conf/"+which+"/route_localnet", []byte("1"), 0o644))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	n.run("ip", "route", "del", "table", "local", "local", "127.0.0.0/8", "dev", "lo")
	return n
}

// onThreadOfItsOwn runs f on a new thread, which ends with f.
func onThreadOfItsOwn(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// within runs f on a thread in the namespace. The sockets that f itself makes stay
// in the namespace.
func (n *netns) within(f func()) {
	n.t.Helper()
	var err error
	onThreadOfItsOwn(func() {
		if err = unix.Setns(n.fd, unix.CLONE_NEWNET); err == nil {
			f()
		}
	})
	if err != nil {
		n.t.Errorf("enter network namespace: %v", err)
	}
}

// path returns a path of the namespace for other programs. It is valid while this
// process lives.
func (n *netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

// command returns a command line that runs argv in the namespace.
func (n *netns) command(argv ...string) []string {
	return append([]string{"nsenter", "--net=" + n.path(), "--"}, argv...)
}

func (n *netns) run(argv ...string) {
	n.t.Helper()
	argv = n.command(argv...)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// link joins two namespaces with a virtual cable, with an address at each end.
func link(a *netns, aDevice, aAddr string, b *netns, bDevice, bAddr string) {
	a.run("ip", "link", "add", aDevice, "type", "veth", "peer", "name", bDevice, "netns", b.path())
	for _, end := range []struct {
		n            *netns
		device, addr string
	}{{a, aDevice, aAddr}, {b, bDevice, bAddr}} {
		end.n.run("ip", "addr", "add", end.addr+"/30", "dev", end.device)
		end.n.run("ip", "link", "set", end.device, "up")
	}
}

// drop loses every packet on a device, both ways and silently, until pass, like a
// network path that has gone.
func (n *netns) drop(device string) { n.filter("-I", device) }

// pass undoes drop.
func (n *netns) pass(device string) { n.filter("-D", device) }

func (n *netns) filter(how, device string) {
	n.t.Helper()
	n.run("iptables", "-w", how, "INPUT", "-i", device, "-j", "DROP")
	n.run("iptables", "-w", how, "OUTPUT", "-o", device, "-j", "DROP")
}

// dial connects from within the namespace.
func (n *netns) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	n.within(func() { conn, err = new(net.Dialer).DialContext(ctx, network, addr) })
	return conn, err
}

// forward makes an address of this process's network available at the same address
// in the namespace.
func (n *netns) forward(addr string) {
	n.t.Helper()
	var ln net.Listener
	var err error
	n.within(func() { ln, err = net.Listen("tcp", addr) })
	if err != nil {
		n.t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	n.t.Cleanup(func() { cancel(); ln.Close(); all.Wait() })
	all.Go(func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer from.Close()
				to, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
				if err != nil {
					return
				}
				defer to.Close()
				defer context.AfterFunc(ctx, func() { from.Close(); to.Close() })()
				var both sync.WaitGroup
				both.Go(func() { _, _ = io.Copy(to, from); _ = to.(*net.TCPConn).CloseWrite() })
				both.Go(func() { _, _ = io.Copy(from, to); _ = from.(*net.TCPConn).CloseWrite() })
				both.Wait()
			})
		}
	})
}

// needNetns skips the test if it cannot make namespaces.
func needNetns(t *testing.T) {
	t.Helper()
	needRoot(t)
	for program, pkg := range map[string]string{"ip": "iproute2", "iptables": "iptables", "nsenter": "util-linux"} {
		_, err := exec.LookPath(program)
		need(t, err == nil, program+" is not installed: apt-get install "+pkg)
	}
}
