// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/kubelet"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

// limit is for all of it, on a machine with other work to do.
const limit = 15 * time.Minute

// formerPrefix is before the names of images of the former version.
const formerPrefix = "former-"

var from = flag.String("from", "", "revision of this repository to come from")

func main() {
	reexec.Init()
	ctrllog.SetLogger(logr.Discard())
	flag.Parse()
	switch {
	case flag.Arg(0) == "echo":
		os.Exit(echo())
	case *from == "":
		fmt.Fprintln(os.Stderr, "upgrade: -from REVISION: say which version to come from")
		os.Exit(2)
	}
	os.Exit(lab.SuiteWith("upgrade", withFormer, func(ctx context.Context, l *lab.Lab) int {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		if err := run(ctx, l); err != nil {
			fmt.Fprintln(os.Stderr, "upgrade:", err)
			return 1
		}
		return 0
	}))
}

// formerTree is where the former version's files are, inside and outside.
func formerTree(source string) string { return filepath.Join(source, "build", "former") }

// withFormer adds the former version's programs to what Pods can run.
func withFormer(ctx context.Context, setup *lab.Setup) error {
	tree := formerTree(setup.Source)
	commands := [][]string{
		{"git", "-C", setup.Source, "worktree", "prune"},
		{"git", "-C", setup.Source, "worktree", "add", "--force", "--detach", tree, *from},
		{"go", "build", "-C", tree, "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tree, "build") + "/", "./cmd/controller", "./cmd/agent"},
	}
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	for _, argv := range commands {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	for _, name := range []string{"controller", "agent"} {
		image := setup.Images["causeway-"+name]
		former := kubelet.Image{Files: map[string]string{}, Entrypoint: image.Entrypoint, UID: image.UID}
		for path := range image.Files {
			former.Files[path] = filepath.Join(tree, "build", name)
		}
		setup.Images[formerPrefix+"causeway-"+name] = former
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	setup.Images["echo"] = kubelet.Image{Files: map[string]string{"/echo": self}, Entrypoint: []string{"/echo", "echo"}}
	return nil
}

// render gives the manifests of a version. With byHand, agents are replaced when
// their Pod is deleted, so that it can be looked at between two of them.
func render(ctx context.Context, l *lab.Lab, former, byHand bool) (string, error) {
	tree := l.Setup.Source
	if former {
		tree = formerTree(tree)
	}
	manifests, err := l.Kubectl(ctx, nil, "kustomize", filepath.Join(tree, "config/overlays/lab"))
	if err != nil {
		return "", err
	}
	if former {
		manifests = strings.ReplaceAll(manifests, "image: causeway-", "image: "+formerPrefix+"causeway-")
	}
	if !byHand {
		return manifests, nil
	}
	const strategy = "  updateStrategy:\n    rollingUpdate:\n      maxUnavailable: 1\n"
	if strings.Count(manifests, strategy) != 1 {
		return "", errors.New("the agents' updateStrategy is not where it was")
	}
	return strings.Replace(manifests, strategy, "  updateStrategy:\n    rollingUpdate: null\n    type: OnDelete\n", 1), nil
}
