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
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

type options struct {
	focus, skip, mode string
	nodes, procs      int
	out               string
}

func main() {
	reexec.Init()
	var o options
	flag.StringVar(&o.focus, "focus", "", "regular expression of the specs to run; empty means all of [sig-network]")
	flag.StringVar(&o.skip, "skip", "", "regular expression of specs to leave out, beside those of unrunnable.txt")
	flag.StringVar(&o.mode, "mode", "nftables", "the agents' proxy mode")
	flag.IntVar(&o.nodes, "nodes", 6, "number of worker nodes, in three zones")
	flag.IntVar(&o.procs, "procs", 4, "number of specs that run at a time")
	flag.StringVar(&o.out, "out", filepath.Join("build", "e2e-kubernetes"), "directory for the results")
	flag.Parse()
	ctrllog.SetLogger(logr.Discard())
	out, err := filepath.Abs(o.out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e-kubernetes:", err)
		os.Exit(1)
	}
	o.out = out
	change := func(ctx context.Context, setup *lab.Setup) error {
		setup.Nodes = o.nodes
		return addImages(ctx, setup)
	}
	os.Exit(lab.SuiteWith("e2e-kubernetes", change, func(ctx context.Context, l *lab.Lab) int {
		if err := run(ctx, l, o); err != nil {
			fmt.Fprintln(os.Stderr, "e2e-kubernetes:", err)
			return 1
		}
		return 0
	}))
}

// run prepares the cluster, runs the specs, and writes the results.
func run(ctx context.Context, l *lab.Lab, o options) error {
	preparing, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := prepare(preparing, l, o); err != nil {
		return err
	}
	list, err := readUnrunnable(filepath.Join(l.Setup.Source, "test", "e2e-kubernetes", "unrunnable.txt"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	began := time.Now()
	failed := specs(ctx, l, o, list)
	report, err := readReport(filepath.Join(o.out, "report.json"))
	if err != nil {
		return errors.Join(failed, err)
	}
	summary := summarize(report, list, o, l.Version(), time.Since(began))
	if err := summary.write(o.out); err != nil {
		return err
	}
	fmt.Print(summary.text())
	return summary.err()
}

// specs runs Ginkgo on a machine outside.
func specs(ctx context.Context, l *lab.Lab, o options, list unrunnable) error {
	programs := programsDir()
	machine, err := outside(l)
	if err != nil {
		return err
	}
	skip := list.patterns()
	if o.skip != "" {
		skip = append(skip, o.skip)
	}
	args := []string{
		"--procs=" + strconv.Itoa(o.procs), "--timeout=4h", "--poll-progress-after=10m", "--no-color",
		"--focus=" + focus(o.focus), "--output-dir=" + o.out, "--json-report=report.json", "--junit-report=junit.xml",
	}
	for _, pattern := range skip {
		args = append(args, "--skip="+pattern)
	}
	args = append(args, filepath.Join(programs, "e2e.test"), "--",
		"--kubeconfig="+l.AdminConfig(), "--provider=local", "--kubectl-path="+filepath.Join(l.Setup.Programs, "kubectl"),
		"--dump-logs-on-failure=false", "--num-nodes="+strconv.Itoa(o.nodes))
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "ginkgo"), args...)
	log, err := os.Create(filepath.Join(o.out, "log.txt"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = o.out
	cmd.Env = append(os.Environ(), "PATH="+l.Setup.Programs+":"+os.Getenv("PATH"))
	fmt.Printf("Running the specs; the log is %s\n", log.Name())
	if err := machine.Start(cmd); err != nil {
		return fmt.Errorf("run the specs: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("run the specs: %w; see %s", err, log.Name())
	}
	return nil
}

// focus restricts an expression to [sig-network].
func focus(expression string) string {
	if expression == "" {
		return `\[sig-network\]`
	}
	return `\[sig-network\].*(` + strings.TrimSpace(expression) + `)`
}
