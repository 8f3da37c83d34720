// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// Elements of a map are added and deleted again: by this package, and by the library
// that it is in place of, which fits no more than that many into one message.
func BenchmarkElements(b *testing.B) {
	const n, message = 20_000, 500
	nstest.Require(b)
	c, err := Dial()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	t := Table{Family: FamilyIPv6, Name: "t"}
	m := Set{Table: t, Name: "m", Key: []Type{TypeIPv6, TypeMark}, Data: []Type{TypeIPv6, TypeService}}
	var tx Batch
	tx.AddTable(t)
	tx.AddSet(m)
	if err := c.Commit(&tx); err != nil {
		b.Fatal(err)
	}
	perElement := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/element")
		b.ReportAllocs()
	}
	b.Run("nft", func(b *testing.B) {
		for b.Loop() {
			tx.Reset()
			for i := range n {
				tx.AddElement(t, m.Name, elementOf(i))
			}
			tx.FlushSet(t, m.Name)
			if err := c.Commit(&tx); err != nil {
				b.Fatal(err)
			}
		}
		perElement(b)
	})
	b.Run("google", func(b *testing.B) {
		lib, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return errors.Join(c.SetWriteBuffer(512<<20), c.SetReadBuffer(8<<20)) }))
		if err != nil {
			b.Fatal(err)
		}
		table := &nftables.Table{Name: t.Name, Family: nftables.TableFamilyIPv6}
		set := &nftables.Set{Table: table, Name: m.Name, IsMap: true}
		for b.Loop() {
			for from := 0; from < n; from += message {
				var some []nftables.SetElement
				for i := from; i < from+message; i++ {
					e := elementOf(i)
					some = append(some, nftables.SetElement{Key: []byte(e.Key), Val: []byte(e.Value)})
				}
				if err := lib.SetAddElements(set, some); err != nil {
					b.Fatal(err)
				}
			}
			lib.FlushSet(set)
			if err := lib.Flush(); err != nil {
				b.Fatal(err)
			}
		}
		perElement(b)
	})
}
