package sidecar

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"github.com/pires/go-proxyproto"
)

// proxyHeaderFixed is the length of a v2 header before its addresses.
// maxProxyHeader bounds the addresses and the vectors after them (haproxy.org
// proxy-protocol.txt section 2.2).
const (
	proxyHeaderFixed = 16
	maxProxyHeader   = 4 << 10
)

var proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")

var errProxyHeader = errors.New("no PROXY v2 header")

// readProxyHeader reads exactly one PROXY protocol v2 header and returns the
// client's address. The address is invalid for a LOCAL header (the proxy's own
// health check). It reads no byte after the header, so the connection needs no
// buffer.
func readProxyHeader(r io.Reader) (netip.AddrPort, error) {
	head := make([]byte, proxyHeaderFixed, 256)
	if _, err := io.ReadFull(r, head); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	if !bytes.HasPrefix(head, proxySignature) {
		return netip.AddrPort{}, errProxyHeader
	}
	n := int(binary.BigEndian.Uint16(head[14:]))
	if n > maxProxyHeader {
		return netip.AddrPort{}, fmt.Errorf("%w: %d bytes", errProxyHeader, n)
	}
	whole := slices.Grow(head, n)[:proxyHeaderFixed+n]
	if _, err := io.ReadFull(r, whole[proxyHeaderFixed:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(whole)))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	if h.Command.IsLocal() {
		return netip.AddrPort{}, nil
	}
	src, _, ok := h.TCPAddrs()
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%w of a TCP client", errProxyHeader)
	}
	addr := src.AddrPort()
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), nil
}

// addrOf converts a TCP address to netip.
func addrOf(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	addr := tcp.AddrPort()
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// trusted reports whether the proxy at addr may name client addresses. An
// empty list trusts all.
func trusted(list []netip.Prefix, addr netip.Addr) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}
