#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# AF_PACKET: the deletion of an interface looks like one that goes down, or like nothing.
#
# One would expect that a packet socket whose interface is deleted says so: by an
# error of its own, or again at each call, as there is nothing that it could ever
# hear. It returns ENETDOWN once, the same as for an interface that goes down and
# comes up again, after which it hears as before. If the interface was down when
# it was deleted, it returns nothing at all. From then on it is bound to interface
# -1 and waits, without an error, also when an interface of the same name, index
# and hardware address exists again and a new socket on that hears every frame.
#
# Seen on Linux 6.18.44 with github.com/mdlayher/packet v1.1.2.
#
# Who goes on reading after ENETDOWN, as one must for a link that flaps, may be deaf
# for ever. internal/announce/l2/wire/conn.go (Run, Bound) asks with getsockname(2)
# which interface the socket has, after each ENETDOWN and from time to time.
#
# Needs Linux, root, Go and the Go module proxy. Exits 1 if this is no longer so.
set -euo pipefail

dir=$(mktemp -d)
child=
cleanup() {
	if [ -n "$child" ]; then
		kill "$child" 2>/dev/null || true
		wait "$child" 2>/dev/null || true
	fi
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
run() {
	"$@" &
	child=$!
	wait "$child"
	child=
}

cd "$dir"
mkdir tmp
export CGO_ENABLED=0 GOTMPDIR="$dir/tmp" GOMODCACHE="$dir/mod" GOFLAGS="-trimpath -modcacherw" GOWORK=off
cat >go.mod <<'EOF'
module finding

go 1.23.0

require (
	github.com/mdlayher/packet v1.1.2
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sys v0.35.0
	github.com/josharian/native v1.1.0 // indirect
	github.com/mdlayher/socket v0.4.1 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/net v0.9.0 // indirect
	golang.org/x/sync v0.1.0 // indirect
)
EOF
cat >main.go <<'EOF'
package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	protocol = 0x88b5 // for experiments
	index    = 100
	patience = 300 * time.Millisecond
)

var (
	mac, peerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	changed      bool
)

func main() {
	for _, downFirst := range []bool{false, true} {
		fmt.Printf("-- deleted while down: %v\n", downFirst)
		try(downFirst)
	}
	if changed {
		fmt.Println("CHANGED: not what this finding states")
		os.Exit(1)
	}
	fmt.Println("As stated: what is deleted is told like what is down, or not at all, and the socket stays deaf.")
}

func try(downFirst bool) {
	link := plug()
	old := listen()
	defer old.Close()
	expect("hears its link", hear(old), nil)

	must(netlink.LinkSetDown(link))
	expect("interface down", read(old), unix.ENETDOWN)
	expect("interface down, read again", read(old), os.ErrDeadlineExceeded)
	must(netlink.LinkSetUp(link))
	expect("interface up again", hear(old), nil)

	told := error(unix.ENETDOWN)
	if downFirst {
		must(netlink.LinkSetDown(link))
		expect("interface down", read(old), unix.ENETDOWN)
		told = os.ErrDeadlineExceeded
	}
	must(netlink.LinkDel(link))
	expect("interface deleted", read(old), told)
	expect("interface deleted, read again", read(old), os.ErrDeadlineExceeded)

	plug()
	fresh := listen()
	defer fresh.Close()
	expect("interface made anew, same index and MAC: new socket", hear(fresh), nil)
	expect("interface made anew, same index and MAC: old socket", hear(old), os.ErrDeadlineExceeded)
	at := bound(old)
	fmt.Printf("old socket is bound to interface %d, new one to %d\n", at, bound(fresh))
	changed = changed || at != -1
	again, err := netlink.LinkByIndex(index)
	must(err)
	must(netlink.LinkDel(again))
}

// plug makes two interfaces with a cable between them.
func plug() netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index, attrs.HardwareAddr = "port0", index, mac
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer0", PeerHardwareAddr: peerMAC}))
	for _, name := range []string{"peer0", "port0"} {
		link, err := netlink.LinkByName(name)
		must(err)
		must(netlink.LinkSetUp(link))
	}
	link, err := netlink.LinkByIndex(index)
	must(err)
	return link
}

func listen() *packet.Conn {
	ifi, err := net.InterfaceByIndex(index)
	must(err)
	c, err := packet.Listen(ifi, packet.Raw, protocol, nil)
	must(err)
	return c
}

// hear sends frames from the other end, as a link takes a moment to carry, until
// one is heard.
func hear(c *packet.Conn) error {
	ifi, err := net.InterfaceByName("peer0")
	must(err)
	out, err := packet.Listen(ifi, packet.Raw, protocol, nil)
	must(err)
	defer out.Close()
	frame := append(bytes.Join([][]byte{mac, peerMAC, {0x88, 0xb5}}, nil), make([]byte, 46)...)
	for range 40 {
		_, err = out.WriteTo(frame, &packet.Addr{HardwareAddr: mac})
		must(err)
		must(c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
		_, _, err = c.ReadFrom(make([]byte, 2048))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	for err == nil && read(c) == nil { // those that are still on their way
	}
	return err
}

func read(c *packet.Conn) error {
	must(c.SetReadDeadline(time.Now().Add(patience)))
	_, _, err := c.ReadFrom(make([]byte, 2048))
	return err
}

func bound(c *packet.Conn) int {
	raw, err := c.SyscallConn()
	must(err)
	at := 0
	must(raw.Control(func(fd uintptr) {
		sa, err := unix.Getsockname(int(fd))
		must(err)
		at = sa.(*unix.SockaddrLinklayer).Ifindex
	}))
	return at
}

func expect(what string, got, want error) {
	text := "a frame"
	if got != nil {
		text = got.Error()
	}
	if errors.Is(got, os.ErrDeadlineExceeded) {
		text = "nothing"
	}
	fmt.Printf("%-52s %s\n", what+":", text)
	changed = changed || !errors.Is(got, want)
}

func must(err error) {
	if err != nil {
		fmt.Println("CANNOT TELL:", err)
		os.Exit(1)
	}
}
EOF
run go get github.com/mdlayher/packet@v1.1.2 github.com/vishvananda/netlink@v1.3.1 golang.org/x/sys@v0.35.0
run go build -o finding .
uname -sr
grep -v indirect go.mod | grep -E '^	(github|golang)'
run unshare --net ./finding
