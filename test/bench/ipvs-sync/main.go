// SPDX-License-Identifier: Apache-2.0

// Command ipvs-sync counts what Services in ipvs mode cost, in the virtual
// machine of test/vm, which has IPVS and can count: one emulated CPU, whose clock
// advances one nanosecond an instruction. The figures are instructions, of kernel
// and agent together, the same within a few percent however busy this machine is.
//
//	full_sync        programming all Services into an empty kernel
//	endpoint_change  one endpoint of a Service gives way to another
//	service_add      one more Service
//	connection       a client connects to a Service, gets one line, and closes;
//	                 "direct" to the Pod itself
//
// BENCH_SIZES (default 1,1000,10000) are numbers of Services of five endpoints.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/causeway-lb/causeway/test/bench/proxybench"
	"github.com/causeway-lb/causeway/test/bench/report"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work := host
	if os.Getenv("IN_TEST_VM") != "" {
		work = guest
	}
	if err := work(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "ipvs-sync:", err)
		return 1
	}
	return 0
}

// figure is what the guest prints, one a line.
type figure struct {
	Case, Metric string
	Instructions []float64
}

// host runs this program in the machine and reports what it counted there.
func host(ctx context.Context) error {
	if _, err := proxybench.Numbers("BENCH_SIZES", defaultSizes); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ipvs-sync-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	runner := filepath.Join(dir, "vm")
	build := exec.CommandContext(ctx, "go", "build", "-o", runner, "./test/vm")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the runner of the virtual machine: %w\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	proxybench.Progress("starting the virtual machine")
	cmd := exec.CommandContext(ctx, runner, "-count", "-memory", "4G", "-timeout", "60m", "-env", "BENCH_SIZES", "-programs", "ip", self)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	result := &report.Report{Bench: "ipvs-sync"}
	var rest bytes.Buffer
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var f figure
		if json.Unmarshal(lines.Bytes(), &f) != nil {
			fmt.Fprintln(&rest, lines.Text())
			continue
		}
		proxybench.Progress("%s: %s", f.Case, f.Metric)
		result.Add(report.Line{Case: f.Case, Metric: f.Metric, Unit: "instructions", Ours: report.Summarise("", f.Instructions)})
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("in the virtual machine: %w\n%s%s", err, &rest, &complaints)
	}
	return result.Write(os.Stdout, "build/bench")
}
