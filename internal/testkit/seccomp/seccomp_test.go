// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"encoding/binary"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What the filter lets through and what not, of each kind of rule that the profile
// has.
func TestRuntimeDefault(t *testing.T) {
	filter, err := RuntimeDefault()
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]bpf.RawInstruction, len(filter))
	for i, f := range filter {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	program, whole := bpf.Disassemble(raw)
	if !whole {
		t.Fatal("the filter has instructions that are not known")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	this, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	const (
		allowed = unix.SECCOMP_RET_ALLOW
		refused = unix.SECCOMP_RET_ERRNO | int(unix.EPERM)
		unknown = unix.SECCOMP_RET_ERRNO | int(unix.ENOSYS)
	)
	for _, test := range []struct {
		name string
		call int
		arg  uint32
		want int
	}{
		{"read", unix.SYS_READ, 0, allowed},
		{"execve", unix.SYS_EXECVE, 0, allowed},
		{"mount", unix.SYS_MOUNT, 0, refused},
		{"setns", unix.SYS_SETNS, 0, refused},
		{"bpf", unix.SYS_BPF, 0, refused},
		{"init_module", unix.SYS_INIT_MODULE, 0, refused},
		{"clone of a thread", unix.SYS_CLONE, unix.CLONE_THREAD | unix.CLONE_VM, allowed},
		{"clone into a network namespace", unix.SYS_CLONE, unix.CLONE_NEWNET, refused},
		{"clone3", unix.SYS_CLONE3, 0, unknown},
		{"socket of netlink", unix.SYS_SOCKET, unix.AF_NETLINK, allowed},
		{"socket of packets", unix.SYS_SOCKET, unix.AF_PACKET, allowed},
		{"socket to a hypervisor", unix.SYS_SOCKET, unix.AF_VSOCK, refused},
		{"personality that is usual", unix.SYS_PERSONALITY, 0, allowed},
		{"personality that is not", unix.SYS_PERSONALITY, 0x0400000, refused},
	} {
		// The virtual machine reads big-endian numbers, the kernel its own.
		data := make([]byte, 64) // struct seccomp_data
		binary.BigEndian.PutUint32(data, uint32(test.call))
		binary.BigEndian.PutUint32(data[4:], uint32(this.ID))
		binary.BigEndian.PutUint32(data[16:], test.arg)
		if got, err := vm.Run(data); err != nil || got != test.want {
			t.Errorf("%s: the filter returns %#x, %v, want %#x", test.name, got, err, test.want)
		}
		binary.BigEndian.PutUint32(data[4:], uint32(this.ID)+1)
		if got, err := vm.Run(data); err != nil || got != refused {
			t.Errorf("%s on another architecture: the filter returns %#x, %v", test.name, got, err)
		}
	}
}
