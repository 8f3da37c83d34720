#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# AF_PACKET: a socket for ARP on a port hears the requests of VLANs as untagged ones.
#
# One would expect of a packet socket bound to an interface and an EtherType that it
# gets the frames that have this type there: untagged ARP, and of VLANs nothing, or
# frames with their tag (their type is 0x8100). The kernel takes the tag off before
# it looks at the type, so that ARP of a VLAN for which this host has no interface
# arrives byte for byte like ARP of the untagged network. In sockaddr_ll its packet
# type is PACKET_OTHERHOST, though it was broadcast, and its interface the port;
# github.com/mdlayher/packet passes on neither this nor PACKET_AUXDATA.
#
# Seen on Linux 6.18.44 with github.com/mdlayher/packet v1.1.2.
#
# Who answers what such a socket hears answers, untagged, on another network than was
# asked. internal/announce/l2/wire/conn.go (own) has a BPF filter reject what is
# PACKET_OTHERHOST or belongs to another interface.
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
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const arp = unix.ETH_P_ARP

var (
	portMAC, peerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	everyone         = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	changed          bool
)

func main() {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "port0", portMAC
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer0", PeerHardwareAddr: peerMAC}))
	peer, port := up("peer0"), up("port0")

	in := open(port)
	defer in.Close()
	out := open(peer)
	defer out.Close()
	untagged := question(nil)
	for i := 0; hear(in, out, untagged) == nil; i++ { // a link takes a moment to carry
		if i == 50 {
			must(errors.New("the link carries nothing"))
		}
	}
	for {
		must(in.SetReadDeadline(time.Now().Add(200 * time.Millisecond)))
		if _, _, err := in.ReadFrom(make([]byte, 2048)); err != nil {
			break
		}
	}
	for _, f := range []struct {
		name  string
		frame []byte
		typ   uint8
	}{
		{"untagged", untagged, unix.PACKET_BROADCAST},
		{"of VLAN 0 (a priority only)", question([]byte{0x81, 0, 0xa0, 0}), unix.PACKET_BROADCAST},
		{"of VLAN 7, of which this host has no interface", question([]byte{0x81, 0, 0, 7}), unix.PACKET_OTHERHOST},
	} {
		got := hear(in, out, f.frame)
		fmt.Printf("ARP request %s:\n\tsent  %s\n", f.name, hex.EncodeToString(f.frame[:20]))
		if got == nil {
			fmt.Println("\theard nothing")
			changed = true
			continue
		}
		fmt.Printf("\theard %s, the untagged frame: %v\n", hex.EncodeToString(got[:20]), bytes.Equal(got, untagged))
		changed = changed || !bytes.Equal(got, untagged)

		// What recvfrom(2) says of such a frame, and package packet does not pass on.
		send(out, f.frame)
		from := peek(in)
		fmt.Printf("\tsockaddr_ll: interface %s, type %d\n", name(from.Ifindex), from.Pkttype)
		changed = changed || from.Ifindex != port || from.Pkttype != f.typ
	}
	if changed {
		fmt.Println("CHANGED: not what this finding states")
		os.Exit(1)
	}
	fmt.Println("As stated: the socket of the port hears requests of a VLAN as if they had no tag.")
}

// question is an ARP request, tag being what stands before its type.
func question(tag []byte) []byte {
	frame := bytes.Join([][]byte{
		everyone, peerMAC, tag, {8, 6, 0, 1, 8, 0, 6, 4, 0, 1},
		peerMAC, {192, 0, 2, 2}, make([]byte, 6), {192, 0, 2, 1},
	}, nil)
	return frame
}

func up(name string) int {
	link, err := netlink.LinkByName(name)
	must(err)
	must(netlink.LinkSetUp(link))
	return link.Attrs().Index
}

func name(index int) string {
	link, err := netlink.LinkByIndex(index)
	must(err)
	return link.Attrs().Name
}

func open(index int) *packet.Conn {
	ifi, err := net.InterfaceByIndex(index)
	must(err)
	c, err := packet.Listen(ifi, packet.Raw, arp, nil)
	must(err)
	return c
}

func send(out *packet.Conn, frame []byte) {
	_, err := out.WriteTo(frame, &packet.Addr{HardwareAddr: everyone})
	must(err)
}

// hear gives what in hears when out sends frame; nil if nothing.
func hear(in, out *packet.Conn, frame []byte) []byte {
	send(out, frame)
	must(in.SetReadDeadline(time.Now().Add(time.Second)))
	buf := make([]byte, 2048)
	n, _, err := in.ReadFrom(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	must(err)
	return buf[:n]
}

func peek(in *packet.Conn) *unix.SockaddrLinklayer {
	raw, err := in.SyscallConn()
	must(err)
	must(in.SetReadDeadline(time.Now().Add(time.Second)))
	var from *unix.SockaddrLinklayer
	must(raw.Read(func(fd uintptr) bool {
		_, sa, err := unix.Recvfrom(int(fd), make([]byte, 2048), 0)
		if err == unix.EAGAIN {
			return false
		}
		must(err)
		from = sa.(*unix.SockaddrLinklayer)
		return true
	}))
	return from
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
