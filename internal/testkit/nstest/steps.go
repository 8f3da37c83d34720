// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Steps runs f, and calls before ahead of each message by which f, or a program that
// f starts, changes something by netlink: the kernel waits meanwhile with what was
// changed so far. f must do so on its own goroutine. what names the message.
func Steps(t testing.TB, f func() error, before func(what string)) error {
	t.Helper()
	listener, done := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := errEnded        // unless f returns
		defer func() { done <- err }()
		fd, failed := watchSends()
		if failed != nil {
			close(listener)
			err = failed
			return
		}
		listener <- fd
		err = f()
	}()
	fd, ok := <-listener
	if !ok {
		return <-done
	}
	defer unix.Close(fd)
	seen := map[uint32]notification{} // by thread
	for {
		select {
		case err := <-done:
			return err
		default:
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, 10); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatalf("wait for a message: %v", err)
		}
		if ready[0].Revents&unix.POLLIN == 0 { // with the thread goes what there is to wait for
			continue
		}
		var n notification
		if err := control(fd, notifyReceive, unsafe.Pointer(&n)); err != nil {
			continue // it was interrupted, and is told again
		}
		what, changes := n.message()
		if last := seen[n.pid]; changes && (last.args != n.args || last.ip != n.ip || !last.interrupted) {
			before(what)
		}
		answer := struct {
			id         uint64
			value      int64
			err, flags uint32
		}{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		n.interrupted = control(fd, notifySend, unsafe.Pointer(&answer)) != nil
		seen[n.pid] = n
	}
}

const notifyReceive, notifySend = 0xc0502100, 0xc0182101

// notification is the kernel's struct seccomp_notif, and whether its system call was
// interrupted.
type notification struct {
	id          uint64
	pid, flags  uint32
	number      int32
	arch        uint32
	ip          uint64
	args        [6]uint64
	interrupted bool
}

func control(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// watchSends has the kernel tell the descriptor that it returns of every message that
// the calling thread is about to send.
func watchSends() (int, error) {
	// A signal, as the runtime sends them, would interrupt what waits here.
	var urgent unix.Sigset_t
	urgent.Val[0] = 1 << (unix.SIGURG - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &urgent, nil); err != nil {
		return 0, fmt.Errorf("block signals: %w", err)
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the system call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SENDTO, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SENDMSG, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("set no_new_privs: %w", err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return 0, fmt.Errorf("watch system calls: %w", errno)
	}
	return int(fd), nil
}

// message names what is to be sent, and says whether it changes something.
func (n *notification) message() (what string, changes bool) {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", n.pid))
	if err != nil {
		return "", false
	}
	defer memory.Close()
	word := func(at uint64) uint64 {
		var b [8]byte
		_, _ = memory.ReadAt(b[:], int64(at))
		return binary.NativeEndian.Uint64(b[:])
	}
	at, size := n.args[1], n.args[2]
	if n.number == unix.SYS_SENDMSG {
		parts := word(n.args[1] + 16) // msg_iov
		at, size = word(parts), word(parts+8)
	}
	b := make([]byte, 48)
	read, _ := memory.ReadAt(b[:min(size, 48)], int64(at))
	const header = unix.SizeofNlMsghdr
	if read < header {
		return "", false
	}
	kind, flags, command := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), b[header]
	if flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP {
		return "", false
	}
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n.pid))
	what = strings.TrimSpace(string(name))
	const batch, get = 16, 2 // NFNL_MSG_BATCH_BEGIN; RTM_GETLINK and its like modulo 4
	switch n.protocol() {
	case unix.NETLINK_NETFILTER:
		return fmt.Sprintf("%s: nfnetlink message %#x", what, kind), kind == batch
	case unix.NETLINK_ROUTE:
		return fmt.Sprintf("%s: rtnetlink message %d", what, kind), kind%4 != get
	case unix.NETLINK_GENERIC:
		return fmt.Sprintf("%s: generic netlink command %d, %d bytes", what, command, size), kind != unix.GENL_ID_CTRL && flags&unix.NLM_F_ACK != 0
	}
	return "", false
}

// protocol is the netlink protocol of the socket, or negative.
func (n *notification) protocol() int {
	fd, pid := int(n.args[0]), int(n.pid)
	if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", pid)); err == nil {
		pid = os.Getpid() // a thread of this process
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	defer unix.Close(process)
	socket, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return -1
	}
	defer unix.Close(socket)
	domain, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_NETLINK {
		return -1
	}
	protocol, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return -1
	}
	return protocol
}
