// SPDX-License-Identifier: Apache-2.0

package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Runtime is HAProxy's runtime interface (Management Guide, section 9.3).
type Runtime interface {
	// Do sends one command and returns what HAProxy answers, without the blank
	// lines at its ends.
	Do(ctx context.Context, command string) (string, error)
}

// Socket reaches the runtime interface over TCP or a Unix socket, with a
// connection for each command, as HAProxy closes it after the answer.
type Socket struct {
	Network, Address string
	// Timeout of one command; 0 means 5 s.
	Timeout time.Duration
}

var _ Runtime = Socket{}

// ParseSocket reads "tcp://192.0.2.60:9999" or "unix:///run/haproxy.sock".
func ParseSocket(text string) (Socket, error) {
	u, err := url.Parse(text)
	switch {
	case err == nil && u.Scheme == "tcp" && u.Host != "" && u.Port() != "":
		return Socket{Network: "tcp", Address: u.Host}, nil
	case err == nil && u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return Socket{Network: "unix", Address: u.Path}, nil
	}
	return Socket{}, fmt.Errorf("%q is not a socket: write tcp://192.0.2.60:9999 or unix:///run/haproxy.sock", text)
}

// bind is the socket's address as haproxy.cfg has it.
func (s Socket) bind() string {
	switch {
	case s.Network == "unix":
		return s.Address
	case strings.HasPrefix(s.Address, "["):
		return "ipv6@" + strings.NewReplacer("[", "", "]", "").Replace(s.Address)
	}
	return "ipv4@" + s.Address
}

// maxAnswer bounds what is read of an answer. A line a server is some 250 bytes:
// the 256 slots and 1,000 nodes of a large one are 64 MB.
const maxAnswer = 64 << 20

// Do implements Runtime.
func (s Socket) Do(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.Timeout, 5*time.Second))
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, s.Network, s.Address)
	if err != nil {
		return "", fmt.Errorf("reach HAProxy: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", fmt.Errorf("reach HAProxy: %w", err)
		}
	}
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", fmt.Errorf("send %q to HAProxy: %w", command, err)
	}
	answer, err := io.ReadAll(io.LimitReader(conn, maxAnswer+1))
	if err != nil {
		return "", fmt.Errorf("read HAProxy's answer to %q: %w", command, err)
	}
	if len(answer) > maxAnswer {
		return "", fmt.Errorf("read HAProxy's answer to %q: it is longer than %d bytes; see that HAProxy, and nothing else, is at %s", command, maxAnswer, s.Address)
	}
	return strings.TrimSpace(string(answer)), nil
}

// What HAProxy answers to a change that it does not make.
var (
	errInUse  = errors.New("the server has connections")
	errAbsent = errors.New("there is no such entry")
)

// change sends a command that changes something. HAProxy answers nothing, or a sentence, of
// which only this function knows which are good.
func change(ctx context.Context, r Runtime, format string, args ...any) error {
	command := fmt.Sprintf(format, args...)
	answer, err := r.Do(ctx, command)
	if err != nil {
		return err
	}
	for _, good := range []string{"New server registered", "Server deleted", "IP changed from", "no need to change", "port changed"} {
		if strings.Contains(answer, good) {
			return nil
		}
	}
	switch {
	case answer == "":
		return nil
	case strings.Contains(answer, "still has connections"), strings.Contains(answer, "has idle connections"), strings.Contains(answer, "existing connection"):
		return errInUse
	case strings.Contains(answer, "Key not found"), strings.Contains(answer, "entry not found"), strings.Contains(answer, "No such server"):
		return errAbsent
	}
	return fmt.Errorf("HAProxy refuses %q: %s", command, answer)
}

// server is one of a backend's.
type server struct {
	address   netip.AddrPort
	checkPort uint16 // 0: the same as address
	weight    int
	up        bool // passes its health check
	leaving   bool // in maintenance
}

// state is what HAProxy has.
type state struct {
	keys    map[string]string            // frontend to backend
	servers map[string]map[string]server // by backend and name
}

// has reports whether there is a server, by backend/name.
func (s *state) has(name string) bool {
	backend, server, _ := strings.Cut(name, "/")
	_, ok := s.servers[backend][server]
	return ok
}

// readState asks HAProxy for everything that this package sets.
func readState(ctx context.Context, r Runtime, mapFile string) (state, error) {
	keys, err := r.Do(ctx, "show map "+mapFile)
	if err != nil {
		return state{}, err
	}
	s := state{}
	if s.keys, err = parseMap(keys); err != nil {
		return state{}, err
	}
	servers, err := r.Do(ctx, "show servers state")
	if err != nil {
		return state{}, err
	}
	s.servers, err = parseServers(servers)
	return s, err
}

// parseMap reads lines of "0x7fe1f403bf40 192.0.2.60:8000 causeway-cluster-0".
func parseMap(text string) (map[string]string, error) {
	keys := map[string]string{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case len(fields) == 3 && strings.HasPrefix(fields[0], "0x"):
			keys[fields[1]] = fields[2]
		default:
			return nil, fmt.Errorf("HAProxy shows no map: %s: see that its configuration is the one that Causeway renders", strings.TrimSpace(line))
		}
	}
	return keys, nil
}

// parseServers reads version 1 of "show servers state", whose second line names
// the columns. Servers of other backends than the slots are left out.
func parseServers(text string) (map[string]map[string]server, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) < 2 || strings.TrimSpace(lines[0]) != "1" || !strings.HasPrefix(lines[1], "# ") {
		return nil, fmt.Errorf("HAProxy shows no servers: %.100q", text)
	}
	names := strings.Fields(lines[1])[1:]
	column := map[string]int{}
	for i, name := range names {
		column[name] = i
	}
	for _, name := range []string{"be_name", "srv_name", "srv_addr", "srv_port", "srv_op_state", "srv_admin_state", "srv_uweight", "srv_check_port"} {
		if _, ok := column[name]; !ok {
			return nil, fmt.Errorf("HAProxy shows servers without %s: it is too old, 2.6 is needed", name)
		}
	}
	servers := map[string]map[string]server{}
	for _, line := range lines[2:] {
		fields := strings.Fields(line)
		if len(fields) < len(names) || !strings.HasPrefix(fields[column["be_name"]], "causeway-") {
			continue
		}
		s, err := parseServer(func(name string) string { return fields[column[name]] })
		if err != nil {
			return nil, fmt.Errorf("read server %s of HAProxy: %w", fields[column["srv_name"]], err)
		}
		backend := fields[column["be_name"]]
		if servers[backend] == nil {
			servers[backend] = map[string]server{}
		}
		servers[backend][fields[column["srv_name"]]] = s
	}
	return servers, nil
}

// Bits and values of HAProxy's server-state file (Management Guide 9.3, show
// servers state).
const (
	operationalRunning = "2"
	adminMaintenance   = 0x01 | 0x02 | 0x04 | 0x20
)

func parseServer(field func(string) string) (server, error) {
	addr, err := netip.ParseAddr(field("srv_addr"))
	if err != nil {
		return server{}, err
	}
	var numbers [4]uint64
	for i, name := range []string{"srv_port", "srv_check_port", "srv_uweight", "srv_admin_state"} {
		if numbers[i], err = strconv.ParseUint(field(name), 10, 16); err != nil {
			return server{}, err
		}
	}
	return server{
		address: netip.AddrPortFrom(addr, uint16(numbers[0])), checkPort: uint16(numbers[1]), weight: int(numbers[2]),
		up: field("srv_op_state") == operationalRunning, leaving: numbers[3]&adminMaintenance != 0,
	}, nil
}
