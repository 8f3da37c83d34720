// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

// Suite runs a test binary inside a lab of its own and returns the exit code:
//
//	func TestMain(m *testing.M) {
//		reexec.Init()
//		os.Exit(lab.Suite("e2e", func(ctx context.Context, l *lab.Lab) int { ...; return m.Run() }))
//	}
//
// Outside of a lab it prepares one and runs this program again in it, with the
// same arguments; inside it starts the cluster, calls run and takes the cluster
// down. The name gets the process's number, so that suites can run side by
// side.
func Suite(name string, run func(context.Context, *Lab) int) int {
	return SuiteWith(name, func(context.Context, *Setup) error { return nil }, run)
}

// SuiteWith is Suite for a lab that change makes different from the usual one,
// before it is entered.
func SuiteWith(name string, change func(context.Context, *Setup) error, run func(context.Context, *Lab) int) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, os.Interrupt)
	defer stop()
	setup, err := Inside()
	if err == nil && setup == nil {
		return suiteOutside(ctx, fmt.Sprintf("%s-%d", name, os.Getpid()), change)
	}
	var l *Lab
	if err == nil {
		l, err = Start(ctx, *setup, nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	defer l.Close()
	return run(ctx, l)
}

func suiteOutside(ctx context.Context, name string, change func(context.Context, *Setup) error) int {
	if err := InstallMissing(ctx, os.Stderr, true); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	setup, err := Prepare(ctx, name)
	if err == nil {
		err = change(ctx, &setup)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	code, err := Enter(ctx, setup, os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	if code != 0 {
		fmt.Fprintln(os.Stderr, "lab: logs are in", filepath.Join(StateDir(name), logsDir))
	}
	return code
}

// Possible returns an error that says what is missing when no lab can be made
// here. It tries the namespaces and ends them again.
func Possible() error {
	if err := Check(); err != nil {
		return err
	}
	cmd := reexec.Command("init", reexec.Argv("nothing")...)
	cmd.SysProcAttr = namespaces()
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) > 0 {
		return fmt.Errorf("%s", out)
	}
	if err != nil {
		return explainClone(err)
	}
	return nil
}

func init() { reexec.Register("nothing", func() int { return 0 }) }
