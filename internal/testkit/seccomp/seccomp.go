// SPDX-License-Identifier: Apache-2.0

// Package seccomp gives tests the seccomp profile that container runtimes give to
// containers.
package seccomp

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// RuntimeDefault returns the seccomp profile that container runtimes give to a
// container with none of the capabilities for which they allow more: those of
// config/ are not among these.
func RuntimeDefault() ([]unix.SockFilter, error) {
	profile, err := profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		return nil, fmt.Errorf("read the default seccomp profile: %w", err)
	}
	this, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("find this machine's system calls: %w", err)
	}
	return compile(profile, this)
}

// Apply confines this process, and what it starts, to a filter from now on.
func Apply(filter []unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}

// compile translates a profile to what the kernel runs. It knows what default
// profiles have: rules that allow or refuse, and conditions on arguments of 32 bits.
func compile(profile *specs.LinuxSeccomp, this *arch.Info) ([]unix.SockFilter, error) {
	const number, architecture = 0, 4 // offsets in struct seccomp_data
	loadNumber := bpf.LoadAbsolute{Off: number, Size: 4}
	refused, err := outcome(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: architecture, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(this.ID), SkipTrue: 1},
		refused,
		loadNumber,
	}
	for _, rule := range profile.Syscalls {
		answer, err := outcome(rule.Action, rule.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range rule.Names {
			n, ok := this.SyscallNames[name]
			if !ok {
				continue // another architecture's, or newer than this list
			}
			var conditions []bpf.Instruction
			for _, arg := range rule.Args {
				c, err := condition(arg)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				conditions = append(conditions, c...)
			}
			// A condition that does not hold leads past the answer.
			for i, c := range conditions {
				if jump, ok := c.(bpf.JumpIf); ok {
					jump.SkipFalse = uint8(len(conditions) - i)
					conditions[i] = jump
				}
			}
			block := append(conditions, answer)
			if len(rule.Args) > 0 {
				block = append(block, loadNumber)
			}
			program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(n), SkipTrue: uint8(len(block))})
			program = append(program, block...)
		}
	}
	program = append(program, refused)
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("assemble seccomp filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return filter, nil
}

// outcome is what the filter returns for an action.
func outcome(action specs.LinuxSeccompAction, errno *uint) (bpf.Instruction, error) {
	switch action {
	case specs.ActAllow:
		return bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}, nil
	case specs.ActErrno:
		code := uint(unix.EPERM)
		if errno != nil {
			code = *errno
		}
		return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(code)}, nil
	}
	return nil, fmt.Errorf("seccomp profile: action %s is not known here", action)
}

// condition loads an argument and ends with a jump that is taken where it does not
// hold.
func condition(arg specs.LinuxSeccompArg) ([]bpf.Instruction, error) {
	if arg.Value > math.MaxUint32 || arg.ValueTwo > math.MaxUint32 {
		return nil, fmt.Errorf("seccomp profile: argument %d has more than 32 bits", arg.Index)
	}
	const args = 16                                                    // offset in struct seccomp_data
	load := bpf.LoadAbsolute{Off: args + 8*uint32(arg.Index), Size: 4} // the lower half: machines are little-endian
	switch arg.Op {
	case specs.OpEqualTo:
		return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(arg.Value)}}, nil
	case specs.OpNotEqual:
		return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(arg.Value)}}, nil
	case specs.OpLessThan:
		return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(arg.Value)}}, nil
	case specs.OpGreaterThan:
		return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(arg.Value)}}, nil
	case specs.OpMaskedEqual:
		return []bpf.Instruction{load, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(arg.Value)}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(arg.ValueTwo)}}, nil
	}
	return nil, fmt.Errorf("seccomp profile: condition %s is not known here", arg.Op)
}
