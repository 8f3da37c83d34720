// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestEveryStepOfAChange holds a change of modes ahead of each message that changes the
// kernel. What a client begins in that state is served in it, and goes on to the end;
// so does what it has begun without having been heard, and what it has chosen a route
// for without having sent anything. Pairs with ipvs are in the long form only.
func TestEveryStepOfAChange(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	net := newNetwork(t)
	if nstest.InVM() { // it is slow
		net.dials = slices.DeleteFunc(slices.Clone(mixed), func(d dial) bool { return d.kind == model.ExternalIP })
		// Nobody has raised the kernel's own limit of 4096, which is about what is open here.
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
			t.Fatal(err)
		}
	}
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	tried := []Mode{NFTables, IPTables, Userspace}
	if os.Getenv(ManyChanges) != "" {
		tried = here(t, kinds) // the virtual machine takes minutes for a pair
	}
	for _, from := range tried {
		for _, to := range tried {
			if from == to || nstest.InVM() && from != IPVS && to != IPVS {
				continue
			}
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) { stepwise(t, net, kinds, from, to) })
		}
	}
}

// TestFlowsOutliveIPVS: a flow by UDP goes on at every step of a change from ipvs to
// another mode, without the loss of a datagram: to one that translates, and to one that
// does not.
func TestFlowsOutliveIPVS(t *testing.T) {
	nstest.Require(t, "ip")
	net := newNetwork(t)
	net.dials = slices.DeleteFunc(slices.Clone(mixed), func(d dial) bool { return !strings.HasPrefix(d.network, "udp") || d.kind == model.ExternalIP })
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	if !slices.Contains(here(t, kinds), IPVS) {
		return // it is run in the virtual machine
	}
	for _, to := range []Mode{NFTables, Userspace} {
		t.Run(string(to), func(t *testing.T) {
			old := inUse(t, kinds, IPVS)
			s := &stepper{t: t, net: net, step: "0"}
			defer s.close()
			s.open = s.all(false, 0)
			s.served(s.open)
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}
			next := s.change(kinds, to, func(what string) {
				s.n++
				s.step = fmt.Sprintf("%d (%s)", s.n, what)
				s.served(s.open)
			})
			if left := next.Remaining(); len(left) > 0 {
				t.Errorf("%v remain", left)
			}
			s.step = "the end"
			s.served(s.open)
			if err := errors.Join(next.Cleanup(t.Context()), next.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// stepper begins traffic ahead of each step.
type stepper struct {
	t      *testing.T
	net    *network
	step   string // the last one
	n      int
	failed int
	// now says that what is begun must be served before the next step.
	now bool
	// leaves says that the old mode stays as long as there are connections: those by
	// TCP end once they were served.
	leaves bool
	// open are all attempts that have been served, late those that have sent nothing
	// yet, lost those that were not heard.
	open, late, lost []*attempt
}

// lostPorts is the first port of clients that are not heard at once.
const lostPorts = 2000

func stepwise(t *testing.T, net *network, kinds map[Mode]Kind, from, to Mode) {
	old := inUse(t, kinds, from)
	s := &stepper{t: t, net: net, now: from != Userspace, leaves: from == IPVS}
	defer s.close()
	s.step = "0"
	testkit.Eventually(t, patience, "all is served before the change", func() error {
		var errs []error
		each(s.all(false, 0), func(a *attempt) {
			until := time.Now().Add(patience)
			errs = append(errs, cmp.Or(a.ask(until), a.hear(until)))
			a.close()
		})
		return errors.Join(errs...)
	})
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	next := s.change(kinds, to, s.before)
	s.before("the end")
	s.finish()
	t.Logf("%d steps, %v", s.n, time.Since(begun))
	if err := errors.Join(next.Cleanup(t.Context()), next.Close()); err != nil {
		t.Error(err)
	}
}

// change has another mode take over.
func (s *stepper) change(kinds map[Mode]Kind, to Mode, before func(string)) (next *Chooser) {
	s.t.Helper()
	err := nstest.Steps(s.t, func() (err error) {
		if next, err = New(Config{Mode: to, Kinds: kinds}); err != nil {
			return err
		}
		for range 10 {
			if _, err = next.Resync(s.t.Context(), desired()); err != nil || len(next.Remaining()) == 0 {
				return err
			}
		}
		return nil
	}, before)
	if err != nil {
		s.t.Fatal(err)
	}
	return next
}

// before is called ahead of each step.
func (s *stepper) before(what string) {
	s.n++
	s.step = fmt.Sprintf("%d (%s)", s.n, what)
	s.net.deaf(s.t, 0, 0)
	for _, a := range s.late {
		a.send()
	}
	prompt := s.all(false, 0)
	if s.now {
		s.served(s.late, prompt, s.open)
		if s.n > 2 { // those of the first step stay open
			each(s.open[len(prompt):], (*attempt).close)
			s.open = s.open[:len(prompt)]
		}
		s.open = append(append(s.open, prompt...), s.late...)
		if s.leaves {
			s.served(s.lost)
			each(s.lost, (*attempt).close)
			s.lost = nil
			each(s.open, func(a *attempt) {
				if a.stream() {
					a.close()
				}
			})
		}
	} else {
		s.lost = append(append(s.lost, s.late...), prompt...)
	}
	s.late = s.all(true, 0)
	first := s.net.lostPort
	s.net.lostPort += len(prompt)
	s.net.deaf(s.t, first, s.net.lostPort)
	s.lost = append(s.lost, s.all(false, first)...)
}

// served has all of them ask something, and be answered.
func (s *stepper) served(lists ...[]*attempt) {
	list := slices.Concat(lists...)
	for _, do := range []func(*attempt, time.Time) error{(*attempt).ask, (*attempt).hear} {
		for _, a := range list {
			if a.failed || a.closed || s.failed > 6 {
				continue
			}
			if err := do(a, time.Now().Add(patience)); err != nil {
				a.failed = true
				s.failed++
				s.t.Errorf("%s, held at step %s: %v", a, s.step, err)
			}
		}
	}
}

func (s *stepper) finish() {
	s.net.deaf(s.t, 0, 0)
	each(s.late, (*attempt).send)
	s.served(s.lost, s.late, s.open)
}

func (s *stepper) close() {
	for _, list := range [][]*attempt{s.open, s.late, s.lost} {
		each(list, (*attempt).close)
	}
}

func each(list []*attempt, f func(*attempt)) {
	for _, a := range list {
		f(a)
	}
}

// all begins an attempt from everywhere to every frontend, from these ports on unless 0.
func (s *stepper) all(late bool, port int) []*attempt {
	var out []*attempt
	for from, ns := range s.net.clients {
		ns.Must(s.t, func() error {
			for _, to := range s.net.dials {
				a := &attempt{from: from, to: to, late: late, lost: port != 0, step: s.step}
				if err := a.begin(port); err != nil {
					return fmt.Errorf("%s: %w", a, err)
				}
				out = append(out, a)
				if port != 0 {
					port++
				}
			}
			return nil
		})
	}
	return out
}

// attempt is a connection, or a flow of UDP.
type attempt struct {
	from string
	to   dial
	step string
	// late attempts send nothing yet, lost ones are not heard.
	late, lost, failed, closed bool
	fd                         int
	at                         unix.Sockaddr
	asked                      int
}

func (a *attempt) String() string {
	kind := ""
	if a.late {
		kind = ", sent a step later"
	}
	if a.lost {
		kind = ", not heard at first"
	}
	return fmt.Sprintf("from the %s to %s, begun ahead of step %s%s", a.from, a.to, a.step, kind)
}

func (a *attempt) close() {
	if !a.closed {
		_ = unix.Close(a.fd)
	}
	a.closed = true
}

func (a *attempt) stream() bool { return strings.HasPrefix(a.to.network, "tcp") }

// begin opens a socket in the namespace of the calling thread.
func (a *attempt) begin(port int) error {
	to := netip.MustParseAddrPort(a.to.addr)
	family, kind := unix.AF_INET6, unix.SOCK_DGRAM
	a.at = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	var local unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	if to.Addr().Is4() {
		family, a.at, local = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}, &unix.SockaddrInet4{Port: port}
	}
	if a.stream() {
		kind = unix.SOCK_STREAM
	}
	var err error
	if a.fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if port != 0 {
		if err := unix.Bind(a.fd, local); err != nil {
			return err
		}
	}
	if a.late && a.stream() {
		// The kernel chooses route and source now, and sends with the first write.
		err := errors.Join(unix.SetsockoptInt(a.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1),
			unix.SetsockoptInt(a.fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1))
		if err != nil {
			return err
		}
	}
	if err := unix.Connect(a.fd, a.at); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	if !a.late {
		a.send()
	}
	return nil
}

// send sends what is the first, or resends, for UDP.
func (a *attempt) send() {
	if !a.stream() || a.late {
		_, _ = unix.Write(a.fd, []byte("hello\n"))
	}
}

// ask says something that was not said before, once there is a connection.
func (a *attempt) ask(until time.Time) error {
	if a.stream() {
		if err := wait(a.fd, unix.POLLOUT, until); err != nil {
			return err
		}
		if n, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR); n != 0 || err != nil {
			return errors.Join(unix.Errno(n), err)
		}
	}
	a.asked++
	_, err := unix.Write(a.fd, fmt.Appendf(nil, "%d\n", a.asked))
	return err
}

// hear waits for the answer. A client by UDP asks again, as a datagram may have been
// lost.
func (a *attempt) hear(until time.Time) error {
	buffer := make([]byte, 64)
	for {
		deadline := until
		if again := time.Now().Add(resend); !a.stream() && again.Before(until) {
			deadline = again
		}
		err := wait(a.fd, unix.POLLIN, deadline)
		if errors.Is(err, errSilent) && time.Now().Before(until) {
			err = a.ask(until)
			if err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		n, err := unix.Read(a.fd, buffer)
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("closed")
		}
		if strings.HasSuffix(string(buffer[:n]), fmt.Sprintf("%d\n", a.asked)) {
			return nil
		}
	}
}

var errSilent = errors.New("silence")

func wait(fd int, events int16, until time.Time) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, max(0, int(time.Until(until).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errSilent
		default:
			return nil
		}
	}
}

// deaf has the endpoints not hear of new clients at these ports: one from which
// connection tracking lets such a client come instead is hardly ever among them.
func (n *network) deaf(t *testing.T, first, end int) {
	t.Helper()
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS}, // the source port
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: uint32(first), Jf: 1},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: uint32(end), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	for _, l := range n.sockets {
		raw, err := l.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
		})
		if err := errors.Join(err, set); err != nil {
			t.Fatal(err)
		}
	}
}
