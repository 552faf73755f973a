package sidecar

import (
	"container/list"
	"net/netip"
	"sync"
)

// pendingConns holds the connections that are not authenticated yet. When
// full, enter closes the oldest connection, so that slow handshakes do not
// keep other clients out.
type pendingConns struct {
	most, mostPerAddr int

	mu      sync.Mutex
	order   list.List // of *pendingConn, oldest first
	perAddr map[netip.Addr]int
}

// pendingConn is one connection in pendingConns.
type pendingConn struct {
	of    *pendingConns
	close func()
	elem  *list.Element // nil once it has left
	addr  netip.Addr    // invalid while unknown
}

func newHalfOpen(most, mostPerAddr int) *pendingConns {
	return &pendingConns{most: most, mostPerAddr: mostPerAddr, perAddr: map[netip.Addr]int{}}
}

// enter adds a connection, and closes the oldest if there are too many.
func (h *pendingConns) enter(close func()) *pendingConn {
	w := &pendingConn{of: h, close: close}
	h.mu.Lock()
	w.elem = h.order.PushBack(w)
	var oldest *pendingConn
	if h.order.Len() > h.most {
		oldest = h.order.Front().Value.(*pendingConn)
		oldest.remove()
	}
	h.mu.Unlock()
	if oldest != nil {
		oldest.close()
	}
	return w
}

// setAddr sets the client's address, and reports whether that address may have
// another connection.
func (w *pendingConn) setAddr(addr netip.Addr) bool {
	addr = rateKey(addr)
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.elem == nil || w.of.perAddr[addr] >= w.of.mostPerAddr {
		return false
	}
	w.addr = addr
	w.of.perAddr[addr]++
	return true
}

// rateKey returns the address under which a client's connections are counted.
// For IPv6 that is its /64, the usual assignment to one site (RFC 6177 section
// 2).
func rateKey(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap(); addr.Is4() {
		return addr
	}
	net, err := addr.Prefix(64)
	if err != nil {
		return addr
	}
	return net.Addr()
}

// leave removes the connection. It may be called more than once.
func (w *pendingConn) leave() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	w.remove()
}

func (w *pendingConn) remove() {
	if w.elem == nil {
		return
	}
	w.of.order.Remove(w.elem)
	w.elem = nil
	if w.addr.IsValid() {
		if w.of.perAddr[w.addr]--; w.of.perAddr[w.addr] <= 0 {
			delete(w.of.perAddr, w.addr)
		}
	}
}

// len returns the number of connections.
func (h *pendingConns) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.order.Len()
}

// closeAll closes all connections.
func (h *pendingConns) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := h.order.Front(); e != nil; e = e.Next() {
		e.Value.(*pendingConn).close()
	}
}
