#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nf_tables: while a table is deleted its rules go on with empty maps and full sets.
#
# One would expect of a transaction that every packet meets the rule set from before
# or the one from after: a deleted table refuses nobody whom it did not refuse.
# But the base chain stays on its hook, with all its rules, until the kernel has
# worked through the whole transaction, while maps have no active elements from the
# transaction's first effect on. Elements of sets still match. So "accept what is in
# the map of what is served; reject what is in the set of our addresses" rejects
# connections that both the old rule set and its absence let through. It lasts
# longer with more rules in the table, and with a process that listens for changes
# (such as nft monitor).
#
# Seen on Linux 6.18.44, through github.com/google/nftables v0.3.0;
# `nft delete table` sends the same message. It does not happen where the base
# chain is deleted first, in a transaction of its own: half of the rounds show that.
#
# Whoever removes or replaces a whole table under load takes its base chains off
# their hooks first: internal/netlink/nft/remove.go (RemoveTables, Replace).
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
	github.com/google/nftables v0.3.0
	golang.org/x/sys v0.35.0
	github.com/mdlayher/netlink v1.8.0
	github.com/mdlayher/socket v0.5.1 // indirect
	golang.org/x/net v0.43.0 // indirect
	golang.org/x/sync v0.14.0 // indirect
	github.com/google/go-cmp v0.6.0 // indirect
)
EOF
cat >main.go <<'EOF'
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	port     = 8080
	chains   = 2000
	perChain = 10
	rounds   = 40
)

// large holds a transaction of some thousand messages, and the answers.
var large = nftables.WithSockOptions(func(c *netlink.Conn) error {
	return errors.Join(c.SetWriteBuffer(4<<20), c.SetReadBuffer(4<<20))
})

func main() {
	must(exec.Command("ip", "link", "set", "lo", "up").Run())
	serve()
	listen()
	seen, careful := false, int64(0)
	for round := 1; round <= rounds && !seen; round++ {
		refused, total := try(false)
		fmt.Printf("delete table:             %4d of %d connections refused\n", refused, total)
		seen = refused > 0
		refused, total = try(true)
		fmt.Printf("delete chain, then table: %4d of %d connections refused\n", refused, total)
		careful += refused
	}
	if !seen || careful > 0 {
		fmt.Println("CHANGED: not what this finding states")
		os.Exit(1)
	}
	fmt.Println("As stated: deleting the table at once refused connections that its rules accept.")
}

func serve() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	must(unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
	must(unix.Listen(fd, 4096))
	go func() {
		for {
			if c, _, err := unix.Accept(fd); err == nil {
				unix.Close(c)
			}
		}
	}()
}

// listen hears of changes to nf_tables, as nft monitor does.
func listen() {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	must(err)
	must(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}))
	go func() {
		for news := make([]byte, 64<<10); ; {
			_, _, _ = unix.Recvfrom(fd, news, 0)
		}
	}()
}

// try gives how many of all connections were refused: none was before the
// table's deletion began.
func try(chainFirst bool) (int64, int64) {
	out := build()
	var refused, total atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := connect()
				total.Add(1)
				if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) { // the SYN's or the ACK's answer
					refused.Add(1)
				} else {
					must(err)
				}
			}
		}()
	}
	for total.Load() < 1000 {
		time.Sleep(time.Millisecond)
	}
	if refused.Load() > 0 {
		must(errors.New("refused with the table in place"))
	}
	c, err := nftables.New()
	must(err)
	if chainFirst {
		c.DelChain(out)
		must(c.Flush())
		time.Sleep(20 * time.Millisecond) // for packets that have begun with its rules
	}
	c.DelTable(out.Table)
	must(c.Flush())
	for done := total.Load(); total.Load() < done+1000; {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	wg.Wait()
	return refused.Load(), total.Load()
}

func connect() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	defer unix.Close(fd)
	must(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	return unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

// build makes, with many other rules,
//
//	chain output {
//		type filter hook output priority 0
//		tcp dport 8080 ip daddr vmap @served          # 127.0.0.1 : accept
//		tcp dport 8080 ip daddr @ours reject with tcp reset # 127.0.0.1
//	}
func build() *nftables.Chain {
	c, err := nftables.New(large)
	must(err)
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "finding"})
	served := &nftables.Set{Table: t, Name: "served", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
	ours := &nftables.Set{Table: t, Name: "ours", KeyType: nftables.TypeIPAddr}
	server := []byte{127, 0, 0, 1}
	must(c.AddSet(served, []nftables.SetElement{{Key: server, VerdictData: &expr.Verdict{Kind: expr.VerdictAccept}}}))
	must(c.AddSet(ours, []nftables.SetElement{{Key: server}}))
	for i := range chains {
		ch := c.AddChain(&nftables.Chain{Table: t, Name: fmt.Sprint("other", i)})
		for range perChain {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{&expr.Counter{}}})
		}
		if i%200 == 199 {
			must(c.Flush()) // what a socket holds
		}
	}
	out := c.AddChain(&nftables.Chain{
		Table: t, Name: "output",
		Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	for _, then := range [][]expr.Any{
		{&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: "served", SetID: served.ID}},
		{&expr.Lookup{SourceRegister: 1, SetName: "ours", SetID: ours.ID}, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}},
	} {
		c.AddRule(&nftables.Rule{Table: t, Chain: out, Exprs: append([]expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 9, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		}, then...)})
	}
	must(c.Flush())
	return out
}

func must(err error) {
	if err != nil {
		fmt.Println("CANNOT TELL:", err)
		os.Exit(1)
	}
}
EOF
run go get github.com/google/nftables@v0.3.0 golang.org/x/sys@v0.35.0 github.com/mdlayher/netlink@v1.8.0
run go build -o finding .
uname -sr
grep -v indirect go.mod | grep -E '^	(github|golang)'
run unshare --net ./finding
