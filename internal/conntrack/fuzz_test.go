// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// FuzzMessages: whatever connection tracking answers is read without a panic, the
// walk ends, and what is read of an entry names it again in the message that
// deletes it.
func FuzzMessages(f *testing.F) {
	message := func(typ uint16, body []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(headerLen+len(body)))
		b = binary.NativeEndian.AppendUint16(b, typ)
		return append(append(b, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0), body...)
	}
	ip := appendAttr(appendAttr(nil, ipv4Src, []byte{198, 51, 100, 9}), ipv4Dst, []byte{10, 96, 0, 10})
	proto := appendAttr(appendAttr(appendAttr(nil, protoNum, []byte{17}), protoSrcPort, []byte{4, 0}), protoDstPort, []byte{0, 53})
	tuple := appendAttr(appendAttr(nil, unix.NLA_F_NESTED|tupleIP, ip), unix.NLA_F_NESTED|tupleProto, proto)
	body := appendAttr([]byte{2, 0, 0, 0}, unix.NLA_F_NESTED|ctaTupleOrig, tuple)
	body = appendAttr(body, unix.NLA_F_NESTED|ctaTupleReply, tuple)
	body = appendAttr(body, ctaStatus, []byte{0, 0, 0, 2})
	body = appendAttr(body, ctaZone, []byte{0, 7})
	body = appendAttr(body, ctaID, []byte{1, 2, 3, 4})
	f.Add(message(ctnetlink, body))
	f.Add(append(message(ctnetlink, body), message(unix.NLMSG_DONE, []byte{0, 0, 0, 0})...))
	f.Add(message(unix.NLMSG_ERROR, []byte{0xfe, 0xff, 0xff, 0xff}))
	f.Add(message(unix.NLMSG_ERROR, nil))
	f.Add([]byte{3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e, again entry
		_, _ = messages(b, func(_ uint32, body []byte) error {
			if len(body) < nfgenmsgLen || !e.parse(body[nfgenmsgLen:]) {
				return nil
			}
			removal := e.appendRemoval(nil, model.IPv4, 1, 0)
			_, err := messages(removal, func(_ uint32, body []byte) error {
				again.parse(body[nfgenmsgLen:])
				return nil
			}, nil)
			if err != nil || again.source != e.source || again.destination != e.destination || string(again.id) != string(e.id) {
				t.Errorf("an entry %v is deleted as %v, %v", e.Flow(), again.Flow(), err)
			}
			return nil
		}, func(uint32, unix.Errno) bool { return false })
	})
}
