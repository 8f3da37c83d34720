// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

func init() { reexec.Register("supervisor", superviseMain) }

// Options choose what the supervisor does with its lab.
type Options struct {
	// Demo runs the demonstration; otherwise the lab is only brought up.
	Demo bool
	// Once ends after the demonstration instead of waiting for Ctrl-C.
	Once bool
	// Bare leaves Causeway uninstalled.
	Bare bool
	// Result is the file for the demonstration's outcome, in JSON.
	Result string
	// Colour and Command say how to write to the user.
	Colour  bool
	Command string
}

// Run makes a lab and does in it what options say, until that is done or ctx
// ends. It returns the exit code.
func Run(ctx context.Context, setup lab.Setup, options Options) (int, error) {
	argument, err := json.Marshal(options)
	if err != nil {
		return 0, fmt.Errorf("encode options: %w", err)
	}
	return lab.Enter(ctx, setup, reexec.Argv("supervisor", string(argument)))
}

// superviseMain is the program inside the lab's namespaces.
func superviseMain() int {
	var options Options
	setup, err := lab.Inside()
	if err == nil && setup == nil {
		err = fmt.Errorf("not inside a lab")
	}
	if err == nil {
		err = json.Unmarshal([]byte(os.Args[1]), &options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "causeway-lab:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	printer := newPrinter(os.Stdout, options.Colour)
	if err := supervise(ctx, *setup, options, printer); err != nil {
		if ctx.Err() != nil {
			return 130
		}
		printer.Failure(err)
		printer.Note("Logs are in %s", setup.State+"/logs")
		return 1
	}
	return 0
}

func supervise(ctx context.Context, setup lab.Setup, options Options, printer *printer) error {
	printer.Title("A bare-metal cluster in network namespaces")
	l, err := lab.Start(ctx, setup, func(reached string) { printer.Step("%s", reached) })
	if err != nil {
		return err
	}
	defer l.Close()
	printer.Step("Control plane, client and %d nodes are on the LAN %s and %s", len(l.Nodes()), lab.LAN4, lab.LAN6)
	if !options.Bare {
		if err := install(ctx, l, printer); err != nil {
			return err
		}
	}
	if options.Demo {
		if err := demonstrate(ctx, l, options, printer); err != nil {
			return err
		}
	}
	if options.Once {
		return nil
	}
	printer.howToLookAround(l, options)
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.Failed():
		return err
	}
}
