// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/lab/cache"
)

// packages maps each program to the Go package that it is built from.
var packages = map[string]string{
	"etcd":                    "go.etcd.io/etcd/server/v3",
	"kube-apiserver":          "k8s.io/kubernetes/cmd/kube-apiserver",
	"kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
	"kube-scheduler":          "k8s.io/kubernetes/cmd/kube-scheduler",
	"kube-proxy":              "k8s.io/kubernetes/cmd/kube-proxy",
	"kubectl":                 "k8s.io/kubernetes/cmd/kubectl",
}

// Programs returns the names that Assets knows, sorted.
func Programs() []string {
	names := make([]string, 0, len(packages))
	for name := range packages {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Assets returns a directory that holds the named programs, building those that
// are missing. The first build takes minutes; its progress goes to standard
// error. A name that is not in Programs is an error. Safe for concurrent use by
// many processes.
//
// The directory is KUBEBUILDER_ASSETS when that is set and holds all of them,
// else one below $CAUSEWAY_CACHE or the user's cache directory.
func Assets(ctx context.Context, names ...string) (string, error) {
	return Builder{Progress: os.Stderr}.Assets(ctx, names...)
}

// Builder builds programs into a cache.
type Builder struct {
	// Module is the directory of the module that pins the versions. Empty
	// means test/controlplane of the source tree around the working directory.
	Module string
	// Cache is the directory below which programs are kept. Empty means
	// $CAUSEWAY_CACHE, else the user's cache directory plus "causeway".
	Cache string
	// Progress receives a line now and then during a build. Nil means silence.
	Progress io.Writer
}

// Assets is the package's Assets with this builder's settings.
func (b Builder) Assets(ctx context.Context, names ...string) (string, error) {
	for _, name := range names {
		if _, ok := packages[name]; !ok {
			return "", fmt.Errorf("unknown program %q: choose from %s", name, strings.Join(Programs(), ", "))
		}
	}
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" && len(missing(dir, names)) == 0 {
		return dir, nil
	}
	module, err := b.module()
	if err != nil {
		return "", err
	}
	dir, err := b.dir(module)
	if err != nil {
		return "", err
	}
	if len(missing(dir, names)) == 0 {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	unlock, err := cache.Lock(ctx, filepath.Join(dir, ".lock"), b.Progress, "builds the control plane")
	if err != nil {
		return "", err
	}
	defer unlock()
	for _, name := range missing(dir, names) {
		if err := b.build(ctx, module, dir, name); err != nil {
			return "", fmt.Errorf("build %s: %w", name, err)
		}
	}
	return dir, nil
}

func missing(dir string, names []string) []string {
	var out []string
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode()&0o111 == 0 {
			out = append(out, name)
		}
	}
	return out
}

func (b Builder) module() (string, error) {
	if b.Module != "" {
		return b.Module, nil
	}
	at, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find source tree: %w", err)
	}
	for {
		dir := filepath.Join(at, "test", "controlplane")
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(at)
		if up == at {
			return "", errors.New("find test/controlplane/go.mod above the working directory: run this inside Causeway's source tree, or set KUBEBUILDER_ASSETS to a directory with the control plane's programs")
		}
		at = up
	}
}

// dir names the cache directory of a module's programs; it may not exist yet.
func (b Builder) dir(module string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("read pinned versions: %w", err)
		}
		fmt.Fprintf(sum, "%s %d\n", name, len(data))
		sum.Write(data)
	}
	key := hex.EncodeToString(sum.Sum(nil))[:16]
	if b.Cache != "" {
		return filepath.Join(b.Cache, "controlplane", key), nil
	}
	return filepath.Join(cache.Dir("controlplane"), key), nil
}

var kubernetesVersion = regexp.MustCompile(`(?m)^(?:require)?\s*k8s\.io/kubernetes (v\S+)`)

// version returns the Kubernetes version that a module pins, such as v1.37.2.
func version(module string) (string, error) {
	data, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("read pinned versions: %w", err)
	}
	match := kubernetesVersion.FindSubmatch(data)
	if match == nil {
		return "", fmt.Errorf("%s/go.mod requires no k8s.io/kubernetes", module)
	}
	return string(match[1]), nil
}
