package sidecar

import (
	"container/list"
	"net/netip"
	"sync"
)

// halfOpen holds the connections that are not authenticated yet. There is
// always room for a new one: the oldest makes it, so that slow handshakes do
// not keep others out.
type halfOpen struct {
	most, mostPerAddr int

	mu      sync.Mutex
	order   list.List // of *waiting, oldest first
	perAddr map[netip.Addr]int
}

// waiting is one connection in halfOpen.
type waiting struct {
	of    *halfOpen
	close func()
	elem  *list.Element // nil once it has left
	addr  netip.Addr    // invalid while unknown
}

func newHalfOpen(most, mostPerAddr int) *halfOpen {
	return &halfOpen{most: most, mostPerAddr: mostPerAddr, perAddr: map[netip.Addr]int{}}
}

// enter adds a connection, and closes the oldest if there are too many.
func (h *halfOpen) enter(close func()) *waiting {
	w := &waiting{of: h, close: close}
	h.mu.Lock()
	w.elem = h.order.PushBack(w)
	var oldest *waiting
	if h.order.Len() > h.most {
		oldest = h.order.Front().Value.(*waiting)
		oldest.remove()
	}
	h.mu.Unlock()
	if oldest != nil {
		oldest.close()
	}
	return w
}

// from names the client's address, and tells whether it may have one more.
func (w *waiting) from(addr netip.Addr) bool {
	addr = oneClient(addr)
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.elem == nil || w.of.perAddr[addr] >= w.of.mostPerAddr {
		return false
	}
	w.addr = addr
	w.of.perAddr[addr]++
	return true
}

// oneClient is the address that a client's connections are counted by: of IPv6
// its /64, which is what one is given (RFC 6177 section 2).
func oneClient(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap(); addr.Is4() {
		return addr
	}
	net, err := addr.Prefix(64)
	if err != nil {
		return addr
	}
	return net.Addr()
}

// leave takes the connection out. It may be called again.
func (w *waiting) leave() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	w.remove()
}

func (w *waiting) remove() {
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

// len is how many there are.
func (h *halfOpen) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.order.Len()
}

// closeAll closes all that are in it.
func (h *halfOpen) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := h.order.Front(); e != nil; e = e.Next() {
		e.Value.(*waiting).close()
	}
}
