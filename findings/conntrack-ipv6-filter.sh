#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ctnetlink: a filtered dump returns the IPv6 flows that do not match.
#
# One would expect of CTA_FILTER (Linux 5.8), which has the kernel compare
# addresses of a tuple while it dumps connection tracking, that a dump filtered by
# a destination returns the flows to it, as it does for IPv4. For IPv6 it returns
# the flows to all other addresses: ctnetlink_filter_match_tuple() takes a
# difference for equality. Alike for source and destination, original and reply.
#
# Seen on Linux 6.18.44, through github.com/vishvananda/netlink v1.3.1, which only
# carries the bytes.
#
# Whoever deletes what such a dump returns ends everybody's flows but those that
# were meant. internal/conntrack/table.go (tupleFilter) leaves protocol, port and
# IPv4 addresses to the kernel and compares IPv6 addresses itself.
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
	github.com/vishvananda/netlink v1.3.1
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/sys v0.35.0
)
EOF
cat >main.go <<'EOF'
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"sort"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linux/netfilter/nfnetlink_conntrack.h
const (
	ctGet, ctNew                 = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1, unix.NFNL_SUBSYS_CTNETLINK << 8
	ctaTupleOrig, ctaTupleReply  = 1, 2
	ctaTupleIP                   = 1
	ctaFilter                    = 25
	filterOrigFlags, filterReply = 1, 2
	filterIPSrc, filterIPDst     = 1, 2
	nested                       = unix.NLA_F_NESTED
	nfgenmsg                     = 4
)

// side is an address in a tuple: its attributes for IPv4 and IPv6, and its flag.
type side struct {
	name  string
	tuple int
	v4    int
	v6    int
	flag  uint32
}

var sides = []side{
	{"original source", ctaTupleOrig, 1, 3, filterIPSrc},
	{"original destination", ctaTupleOrig, 2, 4, filterIPDst},
	{"reply source", ctaTupleReply, 1, 3, filterIPSrc},
	{"reply destination", ctaTupleReply, 2, 4, filterIPDst},
}

func main() {
	changed := false
	for _, f := range []struct {
		name    string
		family  netlink.InetFamily
		clients [2]string
		servers [2]string
		wrong   bool
	}{
		{"IPv4", unix.AF_INET, [2]string{"198.51.100.1", "198.51.100.2"}, [2]string{"192.0.2.1", "192.0.2.2"}, false},
		{"IPv6", unix.AF_INET6, [2]string{"2001:db8:c::1", "2001:db8:c::2"}, [2]string{"2001:db8:5::1", "2001:db8:5::2"}, true},
	} {
		for i := range f.clients {
			create(f.family, net.ParseIP(f.clients[i]), net.ParseIP(f.servers[i]))
		}
		for _, s := range sides {
			have := [2]string{f.clients[0], f.clients[1]}
			if s.tuple == ctaTupleOrig != (s.flag == filterIPSrc) {
				have = f.servers
			}
			got := dump(f.family, s, net.ParseIP(have[0]))
			fmt.Printf("%s: flows whose %s is %s: dump has %v\n", f.name, s.name, have[0], got)
			want := have[0]
			if f.wrong {
				want = have[1] // the one that was not asked for
			}
			changed = changed || len(got) != 1 || got[0] != want
		}
	}
	if changed {
		fmt.Println("CHANGED: not what this finding states")
		os.Exit(1)
	}
	fmt.Println("As stated: IPv4 dumps have what was asked for, IPv6 dumps all else.")
}

func create(family netlink.InetFamily, client, server net.IP) {
	if family == unix.AF_INET {
		client, server = client.To4(), server.To4()
	}
	flow := &netlink.ConntrackFlow{
		FamilyType: uint8(family),
		Forward:    netlink.IPTuple{SrcIP: client, DstIP: server, SrcPort: 1024, DstPort: 53, Protocol: unix.IPPROTO_UDP},
		Reverse:    netlink.IPTuple{SrcIP: server, DstIP: client, SrcPort: 53, DstPort: 1024, Protocol: unix.IPPROTO_UDP},
		TimeOut:    600,
	}
	must(netlink.ConntrackCreate(netlink.ConntrackTable, family, flow))
}

func dump(family netlink.InetFamily, s side, address net.IP) []string {
	at := s.v6
	if v4 := address.To4(); v4 != nil {
		at, address = s.v4, v4
	}
	tuple := nl.NewRtAttr(nested|s.tuple, nil)
	tuple.AddRtAttr(nested|ctaTupleIP, nil).AddRtAttr(at, address)
	flags := map[int]uint32{s.tuple: s.flag}
	filter := nl.NewRtAttr(nested|ctaFilter, nil)
	filter.AddRtAttr(filterOrigFlags, binary.NativeEndian.AppendUint32(nil, flags[ctaTupleOrig]))
	filter.AddRtAttr(filterReply, binary.NativeEndian.AppendUint32(nil, flags[ctaTupleReply]))

	req := nl.NewNetlinkRequest(ctGet, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(family), Version: nl.NFNETLINK_V0})
	req.AddData(tuple)
	req.AddData(filter)
	messages, err := req.Execute(unix.NETLINK_NETFILTER, ctNew)
	must(err)
	var found []string
	for _, m := range messages {
		ip := attr(attr(m[nfgenmsg:], s.tuple), ctaTupleIP)
		found = append(found, net.IP(attr(ip, at)).String())
	}
	sort.Strings(found)
	return found
}

func attr(b []byte, typ int) []byte {
	attrs, err := nl.ParseRouteAttr(b)
	must(err)
	for _, a := range attrs {
		if int(a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)) == typ {
			return a.Value
		}
	}
	return nil
}

func must(err error) {
	if err != nil {
		fmt.Println("CANNOT TELL:", err)
		os.Exit(1)
	}
}
EOF
run go get github.com/vishvananda/netlink@v1.3.1 golang.org/x/sys@v0.35.0
run go build -o finding .
uname -sr
grep -v indirect go.mod | grep -E '^	(github|golang)'
run unshare --net ./finding
