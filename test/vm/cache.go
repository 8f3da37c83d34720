// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/causeway-lb/causeway/internal/lab/apt"
	"github.com/causeway-lb/causeway/internal/lab/cache"
)

//go:embed init.sh
var initScript []byte

var errArchitecture = errors.New("no virtual machine")

// kernelPackage depends on Debian's newest kernel for virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

// modules are the parts of the kernel package that the initramfs holds, as
// prefixes of paths below /lib/modules/VERSION/kernel.
var modules = []string{
	"net/", "lib/", "crypto/", "drivers/net/bonding/", "drivers/net/dummy", "drivers/net/geneve", "drivers/net/ifb",
	"drivers/net/ipvlan/", "drivers/net/macvlan", "drivers/net/tun", "drivers/net/veth", "drivers/net/vrf",
	"drivers/net/vxlan/", "drivers/net/wireguard/", "arch/x86/crypto/crc32c-intel",
}

// image is what every machine boots from. The files are never changed.
type image struct {
	kernel    string // bzImage
	initramfs string // cpio archive; a further one may be appended to a copy
	kvm       bool   // a machine was seen to run with KVM here
}

// imageIn names the files of an image. The trial of KVM left its mark there.
func imageIn(dir string) image {
	_, err := os.Stat(filepath.Join(dir, "kvm"))
	return image{
		kernel:    filepath.Join(dir, "vmlinuz"),
		initramfs: filepath.Join(dir, "initramfs.cpio"),
		kvm:       err == nil && kvmOffered(),
	}
}

// prepare returns the image from the cache, making it if need be. Several
// processes may call it at once: one makes it, the others wait.
func prepare(ctx context.Context, progress io.Writer) (image, error) {
	all := cache.Dir("vm")
	dir := filepath.Join(all, cacheKey())
	if complete(dir) {
		return imageIn(dir), nil
	}
	if err := os.MkdirAll(all, 0o755); err != nil {
		return image{}, fmt.Errorf("make cache directory: %w", err)
	}
	unlock, err := cache.Lock(ctx, filepath.Join(all, ".lock"), progress, "makes the virtual machine")
	if err != nil {
		return image{}, err
	}
	defer unlock()
	if complete(dir) {
		return imageIn(dir), nil
	}
	// What a killed process left is of no use; we hold the lock.
	old, _ := filepath.Glob(filepath.Join(all, "new-*"))
	for _, dir := range old {
		_ = os.RemoveAll(dir)
	}
	temporary, err := os.MkdirTemp(all, "new-")
	if err != nil {
		return image{}, fmt.Errorf("make cache directory: %w", err)
	}
	defer os.RemoveAll(temporary)
	if err := makeImage(ctx, temporary, progress); err != nil {
		return image{}, err
	}
	if tryKVM(ctx, imageIn(temporary)) {
		if err := os.WriteFile(filepath.Join(temporary, "kvm"), nil, 0o644); err != nil {
			return image{}, fmt.Errorf("note that KVM works: %w", err)
		}
	}
	if err := os.Rename(temporary, dir); err != nil {
		return image{}, fmt.Errorf("put image into cache: %w", err)
	}
	return imageIn(dir), nil
}

// complete says whether a cache directory is there; it appears by one rename.
func complete(dir string) bool {
	_, err := os.Stat(dir)
	return err == nil
}

// cacheKey changes with everything that decides what the image contains, except
// the kernel's version: the one that is there is kept.
func cacheKey() string {
	sum := sha256.New()
	fmt.Fprintln(sum, "image 2", kernelPackage, modules)
	sum.Write(initScript)
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

// makeImage fills dir with vmlinuz and initramfs.cpio.
func makeImage(ctx context.Context, dir string, progress io.Writer) error {
	unpacked := filepath.Join(dir, "unpacked")
	defer os.RemoveAll(unpacked)
	name, err := fetchKernel(ctx, dir, unpacked, progress)
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(name, "linux-image-")
	if err := os.Rename(filepath.Join(unpacked, "boot", "vmlinuz-"+version), filepath.Join(dir, "vmlinuz")); err != nil {
		return fmt.Errorf("find the kernel in its package: %w", err)
	}
	tree := filepath.Join(unpacked, "lib", "modules", version)
	if err := pruneModules(filepath.Join(tree, "kernel")); err != nil {
		return fmt.Errorf("choose modules: %w", err)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	if err := command(ctx, unpacked, busybox, "depmod", "-b", unpacked, version); err != nil {
		return fmt.Errorf("index modules: %w", err)
	}
	out, err := os.Create(filepath.Join(dir, "initramfs.cpio"))
	if err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	defer out.Close()
	a := newArchive(out)
	for _, name := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/etc", "/sbin", "/usr", "/vm/tree"} {
		a.dir(name)
	}
	a.bytes("/init", 0o755, initScript)
	if err := errors.Join(a.file("/bin/busybox", 0o755, busybox), a.tree("/lib/modules/"+version, tree), a.close(), out.Close()); err != nil {
		return fmt.Errorf("make initramfs: %w", err)
	}
	return nil
}

// fetchKernel downloads the kernel package and unpacks it, without installing
// it. It returns the package's name, which ends in the kernel's version.
func fetchKernel(ctx context.Context, dir, unpacked string, progress io.Writer) (string, error) {
	var name string
	err := apt.WithIndex(ctx, progress, func() (err error) { name, err = kernelName(ctx); return err })
	if err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "Fetching %s for the virtual machine (once)\n", name)
	if err := apt.Download(ctx, progress, dir, name); err != nil {
		return "", fmt.Errorf("download the kernel: %w", err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if len(files) != 1 {
		return "", fmt.Errorf("download the kernel: found %d packages, want 1", len(files))
	}
	defer os.Remove(files[0])
	if err := command(ctx, dir, "dpkg-deb", "-x", files[0], unpacked); err != nil {
		return "", fmt.Errorf("unpack the kernel: %w", err)
	}
	return name, nil
}

func kernelName(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", kernelPackage).Output()
	if err != nil {
		return "", fmt.Errorf("look up package %s: %w", kernelPackage, err)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + name, nil
		}
	}
	return "", fmt.Errorf("package %s is not in the package index", kernelPackage)
}

// pruneModules removes all modules but the ones that networking needs.
func pruneModules(dir string) error {
	return filepath.Walk(dir, func(at string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, at)
		if err != nil {
			return err
		}
		for _, prefix := range modules {
			if strings.HasPrefix(rel, prefix) {
				return nil
			}
		}
		return os.Remove(at)
	})
}
