// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// kvmTrial is how long a machine may take to show that KVM works; it needs well
// under a second where it does.
const kvmTrial = 10 * time.Second

// kvmOffered says whether the kernel lets this process make a machine with KVM.
func kvmOffered() bool {
	const kvmCreateVM = 0xae01 // KVM_CREATE_VM of linux/kvm.h
	device, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(device)
	vm, err := unix.IoctlRetInt(device, kvmCreateVM)
	if err != nil {
		return false
	}
	return unix.Close(vm) == nil
}

// tryKVM boots the image with KVM and says whether that worked. The offer alone
// proves nothing: inside some virtual machines a machine can be made with KVM
// and then hangs on its way to the kernel.
func tryKVM(ctx context.Context, image image) bool {
	busybox, err := exec.LookPath("busybox")
	if err != nil || !kvmOffered() {
		return false
	}
	trial := machine{
		program: busybox, args: []string{"true"}, cpus: 1, memory: "512M", timeout: kvmTrial,
		kvm: true, stdout: io.Discard, stderr: io.Discard,
	}
	status, err := trial.boot(ctx, image)
	return err == nil && status == 0
}
