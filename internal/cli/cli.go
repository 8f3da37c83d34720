// SPDX-License-Identifier: Apache-2.0

// Package cli runs the programs of an operator's and a developer's shell. It imports
// no other package of this module.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// ExitError is the exit code of a command that has printed its message itself.
type ExitError int

// Error names the code.
func (e ExitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Run executes a command, whose context ends with SIGINT or SIGTERM, and returns the
// exit code: 0, that of an ExitError, 130 after an interrupt, else 1.
func Run(command *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command.ExecuteContext(ctx)
	if exit, ok := errors.AsType[ExitError](err); ok {
		return int(exit)
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, command.Name()+": interrupted")
		return 130
	}
	fmt.Fprintln(os.Stderr, command.Name()+":", err)
	return 1
}
