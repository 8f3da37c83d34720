// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// buildEnv keeps these builds and the project's own in one build cache: equal
// settings in both give equal action IDs, so shared packages compile once.
var buildEnv = []string{"CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOWORK=off"}

// build compiles one program into dir.
func (b Builder) build(ctx context.Context, module, dir, name string) error {
	kubernetes, err := version(module)
	if err != nil {
		return err
	}
	partial := filepath.Join(dir, fmt.Sprintf(".%s.%d", name, os.Getpid()))
	defer os.Remove(partial)

	stop := b.report(ctx, module, name)
	built, err := stop.run(goCommand(ctx, module, "build", "-v",
		"-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+kubernetes,
		"-o", partial, packages[name]))
	stop.close()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, built)
	}
	return os.Rename(partial, filepath.Join(dir, name))
}

func goCommand(ctx context.Context, module string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), buildEnv...)
	return cmd
}

// stalePackages counts the packages a build still has to compile; 0 when the
// count can't be had, which is not worth failing for.
func stalePackages(ctx context.Context, module, pkg string) int {
	out, err := goCommand(ctx, module, "list", "-deps", "-f", "{{if .Stale}}x{{end}}", pkg).Output()
	if err != nil {
		return 0
	}
	return bytes.Count(out, []byte("x"))
}

// reporter prints how far a build has come.
type reporter struct {
	name     string
	progress io.Writer
	compiled atomic.Int64
	total    atomic.Int64
	began    time.Time
	quit     chan struct{}
	ended    chan struct{}
}

func (b Builder) report(ctx context.Context, module, name string) *reporter {
	r := &reporter{name: name, progress: b.Progress, began: time.Now(), quit: make(chan struct{}), ended: make(chan struct{})}
	if r.progress == nil {
		close(r.ended)
		return r
	}
	fmt.Fprintf(r.progress, "Building %s from %s (once; kept in the cache)\n", name, packages[name])
	r.total.Store(int64(stalePackages(ctx, module, packages[name])))
	go func() {
		defer close(r.ended)
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.print("compiled")
			case <-r.quit:
				return
			}
		}
	}()
	return r
}

func (r *reporter) print(verb string) {
	fmt.Fprintf(r.progress, "  %s: %s %d of %d packages, %s\n", r.name, verb,
		r.compiled.Load(), max(r.total.Load(), r.compiled.Load()), time.Since(r.began).Round(time.Second))
}

// run runs go build -v, counting the packages it names, and returns whatever
// else it printed.
func (r *reporter) run(cmd *exec.Cmd) (string, error) {
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	cmd.Stdout = nil
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%w: is the Go toolchain in PATH?", err)
	}
	var rest strings.Builder
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		line := lines.Text()
		if line != "" && !strings.ContainsAny(line, " \t:#") {
			r.compiled.Add(1)
			continue
		}
		if !strings.HasPrefix(line, "go: downloading ") {
			rest.WriteString(line + "\n")
		}
	}
	return rest.String(), cmd.Wait()
}

func (r *reporter) close() {
	if r.progress == nil {
		return
	}
	close(r.quit)
	<-r.ended
	r.print("done,")
}
