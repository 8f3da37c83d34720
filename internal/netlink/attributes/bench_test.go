// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"testing"

	"github.com/mdlayher/netlink"
)

// elements is how many elements of a map one message carries, as package nft
// writes them: key and value, each in an attribute of its own.
const elements = 400

var key, value = []byte("0123456789abcdef\x06\x00\x00\x00\x00\x50\x00\x00\x00\x00\x00\x00"), []byte("0123456789abcdef\x1f\x90\x00\x00")

// One message of elements: this package, and the library that it is in place of.
func BenchmarkEncode(b *testing.B) {
	b.Run("attributes", func(b *testing.B) {
		b.ReportAllocs()
		var e Encoder
		for b.Loop() {
			e.Reset()
			list := e.Nest(3)
			for range elements {
				element := e.Nest(1)
				for typ, data := range map2(key, value) {
					n := e.Nest(typ)
					e.Bytes(1, data)
					e.End(n)
				}
				e.End(element)
			}
			e.End(list)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*elements), "ns/element")
	})
	b.Run("mdlayher", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			e := netlink.NewAttributeEncoder()
			e.Nested(3, func(e *netlink.AttributeEncoder) error {
				for range elements {
					e.Nested(1, func(e *netlink.AttributeEncoder) error {
						for typ, data := range map2(key, value) {
							e.Nested(typ, func(e *netlink.AttributeEncoder) error { e.Bytes(1, data); return nil })
						}
						return nil
					})
				}
				return nil
			})
			if _, err := e.Encode(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*elements), "ns/element")
	})
}

// The same message is read.
func BenchmarkDecode(b *testing.B) {
	var e Encoder
	list := e.Nest(3)
	for range elements {
		element := e.Nest(1)
		for typ, data := range map2(key, value) {
			n := e.Nest(typ)
			e.Bytes(1, data)
			e.End(n)
		}
		e.End(element)
	}
	e.End(list)
	b.Run("attributes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for list := Decode(e.Buf); list.Next(); {
				for element := Decode(list.Data); element.Next(); {
					for part := Decode(element.Data); part.Next(); {
						for value := Decode(part.Data); value.Next(); {
							n += len(value.Data)
						}
					}
				}
			}
			if n != elements*(len(key)+len(value)) {
				b.Fatal(n)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*elements), "ns/element")
	})
	b.Run("mdlayher", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			decoder, err := netlink.NewAttributeDecoder(e.Buf)
			if err != nil {
				b.Fatal(err)
			}
			nested := func(d *netlink.AttributeDecoder, each func(*netlink.AttributeDecoder) error) error {
				for d.Next() {
					d.Nested(each)
				}
				return d.Err()
			}
			err = nested(decoder, func(d *netlink.AttributeDecoder) error {
				return nested(d, func(d *netlink.AttributeDecoder) error {
					return nested(d, func(d *netlink.AttributeDecoder) error {
						for d.Next() {
							n += len(d.Bytes())
						}
						return d.Err()
					})
				})
			})
			if err != nil || n != elements*(len(key)+len(value)) {
				b.Fatal(n, err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*elements), "ns/element")
	})
}

// map2 yields the two parts of an element.
func map2(key, value []byte) func(func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) { _ = yield(1, key) && yield(2, value) }
}
