// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/cache"
	"github.com/causeway-lb/causeway/internal/lab/kubelet"
)

// programsVariable leads from the process outside of the lab to the one inside.
const programsVariable = "CAUSEWAY_E2E_PROGRAMS"

func programsDir() string { return os.Getenv(programsVariable) }

// hostPrograms are what specs and Pods call, by Debian package.
var hostPrograms = []lab.Dependency{
	{Program: "wget", Package: "wget"},
	{Program: "nc", Package: "netcat-openbsd"},
	{Program: "dig", Package: "bind9-dnsutils"},
	{Program: "socat", Package: "socat"},
	{Program: "iperf", Package: "iperf"},
	{Program: "nginx", Package: "nginx-light"},
}

// addImages builds the specs' programs and adds the images that they ask for.
func addImages(ctx context.Context, setup *lab.Setup) error {
	if err := lab.InstallPrograms(ctx, os.Stderr, hostPrograms); err != nil {
		return err
	}
	dir, err := build(ctx, setup.Source)
	if err != nil {
		return err
	}
	if err := os.Setenv(programsVariable, dir); err != nil {
		return err
	}
	agnhost, coredns := filepath.Join(dir, "agnhost"), filepath.Join(dir, "coredns")
	kubernetes, err := moduleDir(ctx, suiteDir(setup.Source), "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	porter := filepath.Join(kubernetes, "test", "images", "agnhost", "porter")
	files := map[string]string{"/agnhost": agnhost, "/agnhost-2": agnhost, "/coredns": coredns, "/etc/wgetrc": filepath.Join(dir, "wgetrc"),
		"/localhost.crt": filepath.Join(porter, "localhost.crt"), "/localhost.key": filepath.Join(porter, "localhost.key")}
	for name, image := range map[string]kubelet.Image{
		"agnhost":                {Files: files, Entrypoint: []string{"/agnhost"}, Args: []string{"pause"}},
		"coredns":                {Files: map[string]string{"/coredns": coredns}, Entrypoint: []string{"/coredns"}},
		"pause":                  {Files: files, Entrypoint: []string{"/agnhost"}, Args: []string{"pause"}},
		"busybox":                {Files: files, Entrypoint: []string{"sh"}},
		"glibc-dns-testing":      {Files: files, Entrypoint: []string{"/agnhost"}, Args: []string{"pause"}},
		"distroless-iptables":    {Files: files, Entrypoint: []string{"sh"}},
		"nginx":                  {Entrypoint: []string{"nginx", "-g", "daemon off;"}},
		"regression-issue-74839": {Files: map[string]string{"/regression-issue-74839": filepath.Join(dir, "regression-issue-74839")}, Entrypoint: []string{"/regression-issue-74839"}},
	} {
		setup.Images[name] = image
	}
	return nil
}

func suiteDir(source string) string { return filepath.Join(source, "test", "e2e-kubernetes", "suite") }

// moduleDir returns where Go keeps the source of a module that the one in dir
// requires.
func moduleDir(ctx context.Context, dir, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// build builds the programs into the cache, once for each set of versions.
func build(ctx context.Context, source string) (string, error) {
	suite := suiteDir(source)
	coredns := filepath.Join(source, "test", "images", "coredns")
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	for _, file := range []string{
		filepath.Join(suite, "go.mod"), filepath.Join(suite, "go.sum"), filepath.Join(suite, "e2e_test.go"),
		filepath.Join(coredns, "go.mod"), filepath.Join(coredns, "main.go"),
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n", filepath.Base(file), len(data))
		sum.Write(data)
	}
	dir := filepath.Join(cache.Dir("e2e-kubernetes"), hex.EncodeToString(sum.Sum(nil))[:16])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := cache.Lock(ctx, filepath.Join(dir, ".lock"), os.Stderr, "builds the tests of Kubernetes")
	if err != nil {
		return "", err
	}
	defer unlock()
	for _, program := range []struct {
		name, module string
		args         []string
	}{
		{"ginkgo", suite, []string{"build", "github.com/onsi/ginkgo/v2/ginkgo"}},
		{"agnhost", suite, []string{"build", "k8s.io/kubernetes/test/images/agnhost"}},
		{"regression-issue-74839", suite, []string{"build", "k8s.io/kubernetes/test/images/regression-issue-74839"}},
		{"coredns", coredns, []string{"build", "."}},
		{"e2e.test", suite, []string{"test", "-c", "."}},
	} {
		path := filepath.Join(dir, program.name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "Building %s (once; kept in the cache)\n", program.name)
		partial := path + ".new"
		last := len(program.args) - 1
		args := append(program.args[:last:last], "-ldflags=-s -w", "-o", partial, program.args[last])
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = program.module
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", program.name, err, out)
		}
		if err := os.Rename(partial, path); err != nil {
			return "", err
		}
	}
	// As busybox's wget, which the images have: it tries once.
	return dir, os.WriteFile(filepath.Join(dir, "wgetrc"), []byte("tries = 1\n"), 0o644)
}
