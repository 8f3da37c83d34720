// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/lab/kubelet"
)

// modulePath is what the source tree's go.mod declares.
const modulePath = "github.com/causeway-lb/causeway"

// images names what the lab builds from the source tree: an image's name, the
// package, and user and path as the Dockerfile has them.
var images = []struct {
	name, pkg, path string
	uid             int
}{
	{name: "causeway-controller", pkg: "./cmd/controller", path: "/controller", uid: 65532},
	{name: "causeway-agent", pkg: "./cmd/agent", path: "/agent"},
	{name: "go-http", pkg: "./test/images/go-http", path: "/go-http", uid: 65532},
}

// Prepare finds or builds all that a lab runs, outside of its namespaces. The
// first time takes minutes, since the control plane is built from source.
func Prepare(ctx context.Context, name string) (Setup, error) {
	source, err := sourceTree()
	if err != nil {
		return Setup{}, err
	}
	setup := Setup{Name: name, Source: source}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		setup.Programs, err = controlplane.Assets(ctx, "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
		return err
	})
	group.Go(func() (err error) {
		setup.Images, err = buildImages(ctx, source)
		return err
	})
	return setup, group.Wait()
}

// WithKubeProxy makes the lab a cluster as it is without Causeway:
// kube-controller-manager keeps the slices, and Pods can run kube-proxy.
func WithKubeProxy(ctx context.Context, setup *Setup) error {
	setup.EndpointControllers = true
	dir, err := controlplane.Assets(ctx, "kube-proxy")
	if err != nil {
		return err
	}
	setup.Images["kube-proxy"] = kubelet.Image{
		Files:      map[string]string{"/kube-proxy": filepath.Join(dir, "kube-proxy")},
		Entrypoint: []string{"/kube-proxy"},
	}
	return nil
}

// sourceTree finds Causeway's go.mod at or above the working directory.
func sourceTree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find source tree: %w", err)
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module "+modulePath+"\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find source tree: no go.mod of Causeway at or above the working directory; run the lab inside the source tree")
		}
		dir = filepath.Dir(dir)
	}
}

// buildImages compiles the programs of the Pods, unless $CAUSEWAY_ASSETS is a
// directory that has them. The Go toolchain leaves alone what is up to date.
func buildImages(ctx context.Context, source string) (map[string]kubelet.Image, error) {
	if dir := os.Getenv("CAUSEWAY_ASSETS"); dir != "" {
		return imageTable(dir)
	}
	dir, err := binDir(source)
	if err != nil {
		return nil, err
	}
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}
	for _, image := range images {
		args = append(args, image.pkg)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build Causeway: %w\n%s", err, out)
	}
	return imageTable(dir)
}

// imageTable is the kubelets' table of images, for programs in dir.
func imageTable(dir string) (map[string]kubelet.Image, error) {
	table := map[string]kubelet.Image{}
	for _, image := range images {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(image.pkg))); err != nil {
			return nil, fmt.Errorf("find program of image %s: %w", image.name, err)
		}
		table[image.name] = kubelet.Image{
			Files:      map[string]string{image.path: filepath.Join(dir, filepath.Base(image.pkg))},
			Entrypoint: []string{image.path},
			UID:        image.uid,
		}
	}
	return table, nil
}

// binDir is in the source tree, or in the user's cache when the tree is
// somebody else's.
func binDir(source string) (string, error) {
	dir := filepath.Join(source, "build", "lab")
	if err := os.MkdirAll(dir, 0o755); err == nil {
		if probe, err := os.CreateTemp(dir, ".probe"); err == nil {
			probe.Close()
			return dir, os.Remove(probe.Name())
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a directory to build in: %w", err)
	}
	dir = filepath.Join(cache, "causeway", "lab")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a directory to build in: %w", err)
	}
	return dir, nil
}
