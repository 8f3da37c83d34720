// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Text returns an element of s as nft prints it, for example
// "nft element ip causeway services { 10.96.0.10 . tcp . 80 : 0x00000002 }".
func (s Set) Text(e Element) string {
	text := typesText(s.Key, e.Key)
	if e.KeyEnd != "" {
		last := s.Key[len(s.Key)-1:]
		text += "-" + typesText(last, e.KeyEnd[len(e.KeyEnd)-typesLen(last):])
	}
	if e.Value != "" {
		text += " : " + typesText(s.Data, e.Value)
	}
	return fmt.Sprintf("nft element %s %s { %s }", s.Table, s.Name, text)
}

func typesText(ts []Type, data string) string {
	if chain, ok := strings.CutPrefix(data, verdictPrefix); ok {
		if chain == "" {
			return "drop"
		}
		return "goto " + chain
	}
	if len(data) < typesLen(ts) && (len(ts) != 1 || len(data) < ts[0].size) {
		return fmt.Sprintf("%x", data)
	}
	parts := make([]string, len(ts))
	for i, t := range ts {
		b := []byte(data[:t.size])
		data = data[min((t.size+3)&^3, len(data)):]
		switch t {
		case TypeIPv4, TypeIPv6:
			a, _ := netip.AddrFromSlice(b)
			parts[i] = a.String()
		case TypeProto:
			names := map[byte]string{6: "tcp", 17: "udp", 132: "sctp"}
			if parts[i] = names[b[0]]; parts[i] == "" {
				parts[i] = fmt.Sprint(b[0])
			}
		case TypeService:
			parts[i] = fmt.Sprint(binary.BigEndian.Uint16(b))
		case TypeMark:
			parts[i] = fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b))
		default:
			parts[i] = fmt.Sprintf("%x", b)
		}
	}
	return strings.Join(parts, " . ")
}
