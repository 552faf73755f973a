package relay

import (
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestDeadPeer: when packets stop arriving, a relay ends soon after the bound:
// one that is sending, one that is idle, and one whose client had paused.
func TestDeadPeer(t *testing.T) {
	if os.Getenv("MAYFLY_TEST_NETNS") != "" {
		deadPeers(t)
		return
	}
	for _, tool := range []string{"unshare", "ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil || os.Geteuid() != 0 {
			if os.Getenv("MAYFLY_TEST_REQUIRE") == "all" {
				t.Fatalf("needs root and %s", tool)
			}
			t.Skipf("needs root and %s: apt-get install util-linux iproute2 nftables", tool)
		}
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "-n", "sh", "-c",
		`ip link set lo up && exec "$0" -test.run '^TestDeadPeer$' -test.v`, os.Args[0])
	cmd.Env = append(os.Environ(), "MAYFLY_TEST_NETNS=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// deadPeers is the part of TestDeadPeer in its own network namespace, which
// may drop packets.
func deadPeers(t *testing.T) {
	const bound = 4 * time.Second
	w := newWorld(t)
	idle, sending, paused := w.open(), w.open(), w.open()
	for _, p := range []*pair{idle, sending, paused} {
		if err := p.relay.conn.KeepAlive(bound); err != nil {
			t.Fatal(err)
		}
	}
	go io.Copy(io.Discard, sending.client)
	for _, p := range []*pair{sending, paused} {
		go func() {
			chunk := make([]byte, 64<<10)
			for {
				if _, err := p.engine.Write(chunk); err != nil {
					return
				}
			}
		}()
	}
	time.Sleep(2 * bound) // long enough that the paused one depends on its extended bound
	select {
	case e := <-paused.ended:
		t.Fatalf("a paused reader was cut: %+v", e)
	default:
	}
	drop := exec.Command("nft", "-f", "-")
	stdin, err := drop.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		io.WriteString(stdin, "table inet dead { chain input { type filter hook input priority 0; policy drop; }; }\n")
		stdin.Close()
	}()
	if out, err := drop.CombinedOutput(); err != nil {
		t.Fatalf("nft cannot drop packets here: %v\n%s", err, out)
	}
	began := time.Now()
	for name, p := range map[string]*pair{"idle": idle, "sending": sending, "paused": paused} {
		select {
		case e := <-p.ended:
			took := time.Since(began)
			t.Logf("%s: found after %v: %s", name, took.Round(time.Millisecond), e.reason)
			if e.reason != ClientLost {
				t.Errorf("%s: ended as %q", name, e.reason)
			}
		case <-time.After(time.Until(began.Add(2 * bound))):
			t.Errorf("%s: not found %v after the last packet", name, time.Since(began))
		}
	}
}
