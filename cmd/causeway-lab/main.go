// SPDX-License-Identifier: Apache-2.0

// Command causeway-lab runs a bare-metal cluster with Causeway in network
// namespaces of this machine. It is for the demonstration and for development;
// what operators use is the command causeway.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

func main() {
	reexec.Init()
	os.Exit(run())
}

// exitError is an error whose message has been printed already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if exit := exitError(0); errors.As(err, &exit) {
		return int(exit)
	}
	if err != nil && ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "causeway-lab: interrupted")
		return 130
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "causeway-lab:", err)
		return 1
	}
	return 0
}
