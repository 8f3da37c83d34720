#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# vishvananda/netlink and nexthop objects: a route without an interface moves unheard.
#
# One would expect that RouteList says by which interface a unicast route leaves, or
# that it refers to a nexthop object; and that RouteSubscribe hears when it leaves by
# another. With net.ipv4.nexthop_compat_mode=0, which spares routing daemons messages, the
# kernel gives RTA_NH_ID alone. The library's Route has no field for that and drops
# it: a route that forwards packets has LinkIndex 0, no gateway and no MultiPath,
# and a new nexthop moves it to another interface without a route event. In this
# mode the deletion of a nexthop object deletes its routes without one too; those of
# IPv4 also in mode 1, the default. The library can't list or hear of nexthop
# objects either.
#
# Seen on Linux 6.18.44 with github.com/vishvananda/netlink v1.3.1; nexthop objects
# are made with ip of iproute2 6.1.0 (Debian 6.1.0-3).
#
# Who looks for the interface of the default route finds none, or keeps a former
# one. internal/announce/links/routes.go (listNextHops, watchNextHops) reads RTA_NH_ID and
# nexthop objects itself, and listens to RTNLGRP_NEXTHOP.
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
	golang.org/x/sys v0.35.0
	github.com/vishvananda/netns v0.0.5 // indirect
)
EOF
cat >main.go <<'EOF'
package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const compat = "/proc/sys/net/ipv4/nexthop_compat_mode"

var changed bool

func main() {
	version, err := exec.Command("ip", "-V").Output()
	must(err)
	fmt.Print("	", string(version))
	for _, name := range []string{"a", "b"} {
		ip("link add port-" + name + " type veth peer name peer-" + name)
		ip("link set peer-" + name + " up")
		ip("link set port-" + name + " up")
	}
	ip("address add 192.0.2.1/24 dev port-a")
	ip("address add 198.51.100.1/24 dev port-b")
	ip("address add 2001:db8:a::1/64 dev port-a nodad")
	ip("address add 2001:db8:b::1/64 dev port-b nodad")

	for _, mode := range []string{"1", "0"} {
		must(os.WriteFile(compat, []byte(mode), 0))
		for _, f := range []struct {
			name   string
			family int
			to     string
			host   string
			via    [2]string
		}{
			{"IPv4", unix.AF_INET, "203.0.113.0/24", "203.0.113.1", [2]string{"192.0.2.2", "198.51.100.2"}},
			{"IPv6", unix.AF_INET6, "2001:db8:f::/64", "2001:db8:f::1", [2]string{"2001:db8:a::2", "2001:db8:b::2"}},
		} {
			fmt.Printf("-- %s, nexthop_compat_mode=%s\n", f.name, mode)
			ip("nexthop add id 1 via " + f.via[0] + " dev port-a")
			ip("route add " + f.to + " nhid 1")
			expect("listed with an interface", listed(f.family, f.to), mode == "1")
			expect("leaves by port-a", leavesBy(f.host) == "port-a", true)

			heard := listen(f.to)
			ip("nexthop replace id 1 via " + f.via[1] + " dev port-b")
			expect("nexthop replaced: leaves by port-b", leavesBy(f.host) == "port-b", true)
			expect("nexthop replaced: route event", heard(), mode == "1")

			heard = listen(f.to)
			ip("nexthop delete id 1")
			expect("nexthop deleted: route is gone", leavesBy(f.host) == "", true)
			expect("nexthop deleted: route event", heard(), f.family == unix.AF_INET6 && mode == "1")
		}
	}
	if changed {
		fmt.Println("CHANGED: not what this finding states")
		os.Exit(1)
	}
	fmt.Println("As stated: routes of nexthop objects have no interface, and move and go without an event.")
}

// listed tells whether RouteList gives anything by which the route leaves.
func listed(family int, to string) bool {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: network(to)}, netlink.RT_FILTER_DST)
	must(err)
	if len(routes) != 1 {
		must(fmt.Errorf("%d routes to %s", len(routes), to))
	}
	r := routes[0]
	fmt.Println("  ", r)
	return r.LinkIndex != 0 || r.Gw != nil || r.Via != nil || len(r.MultiPath) > 0
}

// leavesBy asks the kernel to route a packet; "" if it can't.
func leavesBy(host string) string {
	routes, err := netlink.RouteGet(net.ParseIP(host))
	if err != nil || len(routes) != 1 {
		return ""
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	must(err)
	return link.Attrs().Name
}

// listen gives a function that tells whether there was an event for the route to
// to until it is called.
func listen(to string) func() bool {
	updates, done := make(chan netlink.RouteUpdate), make(chan struct{})
	must(netlink.RouteSubscribe(updates, done))
	return func() bool {
		defer close(done)
		// The last event is one that is made here: all before it have come by then.
		const last = "192.0.2.77/32"
		ip("route add blackhole " + last)
		defer ip("route delete blackhole " + last)
		heard := false
		for u := range updates {
			if u.Dst == nil {
				continue
			}
			switch u.Dst.String() {
			case network(to).String():
				heard = true
			case last:
				return heard
			}
		}
		must(fmt.Errorf("subscription ended"))
		return false
	}
}

func network(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	must(err)
	return n
}

func ip(args string) {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		must(fmt.Errorf("ip %s: %w: %s", args, err, out))
	}
}

func expect(what string, got, want bool) {
	fmt.Printf("   %s: %v\n", what, got)
	changed = changed || got != want
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
