// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// destination is a real server of any virtual server, as a connection names it.
type destination struct {
	protocol model.Protocol
	addr     netip.AddrPort
}

// connectedTo says whether any connection to these destinations may still be
// used, of which the kernel counts some as active.
//
// The kernel counts those in its state SYN_SENT among them, and that is none in
// which a client's connection comes up: it is where one gets to that had ended when
// its server repeated a SYN-ACK, and stays for two minutes.
func connectedTo(to map[destination]bool) (bool, error) {
	file, err := os.Open("/proc/thread-self/net/ip_vs_conn")
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // as counted
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	return anyConnected(file, to)
}

// anyConnected reads the kernel's list as far as the first such connection, which
// where there are many is not far.
func anyConnected(list io.Reader, to map[destination]bool) (bool, error) {
	protocols := map[string]model.Protocol{"TCP": model.TCP, "SCTP": model.SCTP, "UDP": model.UDP}
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		// Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires
		words := strings.Fields(lines.Text())
		if len(words) < 8 {
			continue
		}
		port, err := strconv.ParseUint(words[6], 16, 16)
		addr, ok := connectionAddr(words[5])
		if err != nil || !ok || !to[destination{protocols[words[0]], netip.AddrPortFrom(addr, uint16(port))}] {
			continue
		}
		switch words[7] {
		case "ESTABLISHED", "SYN_RECV", "SYNACK":
			return true, nil
		case "SYN_SENT", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN":
		default:
			if words[0] == "SCTP" {
				return true, nil // the kernel counts some of its other states as active
			}
		}
	}
	return false, lines.Err()
}

// connectionAddr reads an address of the list: eight hexadecimal digits, or IPv6's
// usual form.
func connectionAddr(s string) (netip.Addr, bool) {
	if strings.Contains(s, ":") {
		a, err := netip.ParseAddr(s)
		return a, err == nil
	}
	n, err := strconv.ParseUint(s, 16, 32)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), err == nil && len(s) == 8
}
