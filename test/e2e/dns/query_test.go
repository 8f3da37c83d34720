// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// answer is a server's response in a form that can be compared.
type answer struct {
	code      dnsmessage.RCode
	records   []string // "A 10.96.0.7", "CNAME web.default.svc.cluster.local.", ..., sorted
	truncated bool
}

func (a answer) String() string {
	return fmt.Sprintf("%s [%s]", strings.TrimPrefix(a.code.String(), "RCode"), strings.Join(a.records, ", "))
}

// ask sends one question to cluster DNS, from the Pod, over "udp" or "tcp". An
// answer over UDP may say that it was truncated.
func ask(ctx context.Context, transport, name string, kind dnsmessage.Type) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := resolver.Dial(ctx, transport, frontend(lab.DNS, 53))
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return answer{}, err
	}
	question, err := dnsmessage.NewName(name)
	if err != nil {
		return answer{}, err
	}
	message := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: question, Type: kind, Class: dnsmessage.ClassINET}},
	}
	packed, err := message.Pack()
	if err != nil {
		return answer{}, err
	}
	received, err := exchange(conn, packed, transport == "tcp")
	if err != nil {
		return answer{}, err
	}
	var response dnsmessage.Message
	if err := response.Unpack(received); err != nil {
		return answer{}, err
	}
	if response.ID != message.ID {
		return answer{}, fmt.Errorf("answer to question %d, want %d", response.ID, message.ID)
	}
	return summarise(&response), nil
}

// exchange sends a message and reads one; over a stream each has its length in
// front (RFC 1035, section 4.2.2).
func exchange(conn net.Conn, message []byte, stream bool) ([]byte, error) {
	if stream {
		message = append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
	}
	if _, err := conn.Write(message); err != nil {
		return nil, err
	}
	if !stream {
		buffer := make([]byte, 4096)
		n, err := conn.Read(buffer)
		return buffer[:n], err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	buffer := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, buffer)
	return buffer, err
}

func summarise(response *dnsmessage.Message) answer {
	a := answer{code: response.RCode, truncated: response.Truncated}
	for _, record := range response.Answers {
		switch body := record.Body.(type) {
		case *dnsmessage.AResource:
			a.records = append(a.records, "A "+netip.AddrFrom4(body.A).String())
		case *dnsmessage.AAAAResource:
			a.records = append(a.records, "AAAA "+netip.AddrFrom16(body.AAAA).String())
		case *dnsmessage.CNAMEResource:
			a.records = append(a.records, "CNAME "+body.CNAME.String())
		case *dnsmessage.PTRResource:
			a.records = append(a.records, "PTR "+body.PTR.String())
		case *dnsmessage.SRVResource:
			a.records = append(a.records, fmt.Sprintf("SRV %d %s", body.Port, body.Target))
		case *dnsmessage.TXTResource:
			a.records = append(a.records, "TXT "+strings.Join(body.TXT, ""))
		default:
			a.records = append(a.records, record.Header.Type.String())
		}
	}
	slices.Sort(a.records)
	return a
}

// wantAnswer waits until DNS answers so, over UDP and over TCP: it learns of
// changes by a watch.
func wantAnswer(t *testing.T, ctx context.Context, name string, kind dnsmessage.Type, code dnsmessage.RCode, records ...string) {
	t.Helper()
	slices.Sort(records)
	want := answer{code: code, records: records}
	for _, transport := range []string{"udp", "tcp"} {
		testkit.Eventually(t, 15*time.Second, fmt.Sprintf("%s %s over %s", name, kind, transport), func() error {
			got, err := ask(ctx, transport, name, kind)
			if err != nil {
				return err
			}
			if got.String() != want.String() {
				return fmt.Errorf("answer %s, want %s", got, want)
			}
			return nil
		})
	}
}
