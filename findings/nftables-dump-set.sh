#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nf_tables: a dump of a set lacks elements that nobody touches, and does not say so.
#
# One would expect of a dump (NFT_MSG_GETSETELEM) that it has every element that was
# in the set all the time, or else that the kernel marks it with NLM_F_DUMP_INTR,
# as it does with dumps of rules. While another process adds and deletes other
# elements of the set, dumps lack elements that it does not touch, without the
# mark: each part of a dump begins by counting to where the last one ended, and
# what was deleted before that is not there to be counted.
#
# Seen on Linux 6.18.44. GetSetElements of github.com/google/nftables v0.3.0 returns
# such a list without an error.
#
# Who compares a dump with what should be there adds what is there already (EEXIST
# for a map with another value), or reports as lost what is not. It reads the
# generation (NFT_MSG_GETGEN) before and after, and again if it has changed:
# internal/netlink/nft/read.go (ReadElements).
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
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	untouched = 20000
	others    = 4000
	rules     = 3000
	dumps     = 50
)

// large holds a transaction of some thousand messages, and the answers.
var large = nftables.WithSockOptions(func(c *netlink.Conn) error {
	return errors.Join(c.SetWriteBuffer(4<<20), c.SetReadBuffer(4<<20))
})

var (
	table = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "finding"}
	chain = &nftables.Chain{Table: table, Name: "rules"}
	set   = &nftables.Set{Table: table, Name: "set", KeyType: nftables.TypeIPAddr}
)

func main() {
	c, err := nftables.New(large)
	must(err)
	c.AddTable(table)
	c.AddChain(chain)
	must(c.AddSet(set, nil))
	must(c.Flush())
	for range rules {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
	}
	must(c.Flush())
	change(c, c.SetAddElements, 0, untouched)
	change(c, c.SetAddElements, untouched, untouched+others)

	// After the set has grown, the kernel moves it to a larger table.
	quiet := 0
	for deadline := time.Now().Add(30 * time.Second); quiet < 10; quiet++ {
		if missing, marked := readSet(); missing > 0 || marked {
			quiet = -1
		}
		if time.Now().After(deadline) {
			must(errors.New("dumps are not whole while nobody writes"))
		}
	}
	fmt.Println("nobody writes: 10 dumps of the set, all whole")

	var stop atomic.Bool
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w, err := nftables.New(large)
		must(err)
		for !stop.Load() {
			change(w, w.SetDeleteElements, untouched, untouched+others)
			change(w, w.SetAddElements, untouched, untouched+others)
		}
	}()
	lossy, worst, marks, ruleMarks := 0, 0, 0, 0
	for range dumps {
		missing, marked := readSet()
		if missing > 0 {
			lossy++
			worst = max(worst, missing)
		}
		if marked {
			marks++
		}
		if marked := read(unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, 0, nil); marked {
			ruleMarks++
		}
	}
	library := 0
	for range dumps {
		elements, err := c.GetSetElements(set)
		must(err)
		have := map[uint32]bool{}
		for _, e := range elements {
			have[binary.BigEndian.Uint32(e.Key)] = true
		}
		if missing(have) > 0 {
			library++
		}
	}
	stop.Store(true)
	<-stopped
	fmt.Printf("others are written: %d of %d dumps of the set lack untouched elements (up to %d of %d)\n", lossy, dumps, worst, untouched)
	fmt.Printf("others are written: %d of %d dumps of the set have NLM_F_DUMP_INTR\n", marks, dumps)
	fmt.Printf("others are written: %d of %d dumps of rules have NLM_F_DUMP_INTR\n", ruleMarks, dumps)
	fmt.Printf("others are written: %d of %d GetSetElements lack untouched elements, without an error\n", library, dumps)
	if lossy == 0 || library == 0 || marks > 0 || ruleMarks == 0 {
		fmt.Println("CHANGED: not what this finding states")
		os.Exit(1)
	}
	fmt.Println("As stated: dumps of a set lack elements and are not marked.")
}

// change adds or deletes the elements from..to, a few hundred a transaction.
func change(c *nftables.Conn, do func(*nftables.Set, []nftables.SetElement) error, from, to int) {
	for ; from < to; from += 400 {
		var some []nftables.SetElement
		for i := from; i < min(from+400, to); i++ {
			some = append(some, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(i))})
		}
		must(do(set, some))
		must(c.Flush())
	}
}

func missing(have map[uint32]bool) int {
	n := 0
	for i := range uint32(untouched) {
		if !have[i] {
			n++
		}
	}
	return n
}

// readSet dumps the set and gives how many of the untouched elements it lacks.
func readSet() (lacking int, marked bool) {
	have := map[uint32]bool{}
	marked = read(unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, func(ad *netlink.AttributeDecoder) {
		for ad.Next() {
			if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(element *netlink.AttributeDecoder) error {
						for element.Next() {
							if element.Type() == unix.NFTA_SET_ELEM_KEY {
								element.Nested(func(key *netlink.AttributeDecoder) error {
									for key.Next() {
										have[binary.BigEndian.Uint32(key.Bytes())] = true
									}
									return nil
								})
							}
						}
						return nil
					})
				}
				return nil
			})
		}
		must(ad.Err())
	})
	return missing(have), marked
}

// read dumps, and says whether any message, the last one included, is marked with
// NLM_F_DUMP_INTR.
func read(get, tableAttr, setAttr uint16, each func(*netlink.AttributeDecoder)) (marked bool) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	must(err)
	defer unix.Close(fd)
	ae := netlink.NewAttributeEncoder()
	ae.String(tableAttr, table.Name)
	if setAttr != 0 {
		ae.String(setAttr, set.Name)
	}
	attrs, err := ae.Encode()
	must(err)
	request := netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | get), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}, attrs...),
	}
	request.Header.Length = uint32(unix.NLMSG_HDRLEN + len(request.Data))
	b, err := request.MarshalBinary()
	must(err)
	must(unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	for buf := make([]byte, 64<<10); ; {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		must(err)
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		must(err)
		for _, m := range messages {
			marked = marked || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_ERROR:
				must(fmt.Errorf("dump: %x", m.Data))
			case unix.NLMSG_DONE:
				return marked
			}
			if each != nil {
				ad, err := netlink.NewAttributeDecoder(m.Data[4:])
				must(err)
				each(ad)
			}
		}
	}
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
