// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/cli"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/demo"
	"github.com/causeway-lb/causeway/internal/version"
)

func newCommand() *cobra.Command {
	var name string
	command := &cobra.Command{
		Use:     "causeway-lab",
		Version: version.String(),
		Short:   "A bare-metal cluster in network namespaces on this machine",
		Long: `A LAN with a client, a control plane and three nodes, each a network namespace
of its own, with a real API server, real processes and real packets. Nothing
outside of the namespaces is touched, and nothing is left when it ends.

Runs as root, or as any user where the kernel has user namespaces.`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	command.PersistentFlags().StringVar(&name, "name", "", "name of the lab, if several run at the same time (default \"lab\")")
	command.AddCommand(
		newUpCommand(&name), newDemoCommand(&name), newShellCommand(&name),
		newLogsCommand(&name), newNodeCommand(&name), newDepsCommand(), newCleanCommand(),
	)
	return command
}

func newUpCommand(name *string) *cobra.Command {
	var options demo.Options
	var nodes int
	command := &cobra.Command{
		Use:   "up",
		Short: "Bring the cluster up with Causeway installed, and keep it up until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return runLab(command.Context(), *name, nodes, options)
		},
	}
	command.Flags().BoolVar(&options.Bare, "bare", false, "leave Causeway uninstalled")
	command.Flags().IntVar(&nodes, "nodes", 3, "number of worker nodes, 1 to 80")
	return command
}

func newDemoCommand(name *string) *cobra.Command {
	options := demo.Options{Demo: true}
	command := &cobra.Command{
		Use:   "demo",
		Short: "Show a LoadBalancer Service from manifest to packet, and what happens when its node dies",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if err := os.MkdirAll(filepath.Dir(options.Result), 0o755); err != nil {
				return fmt.Errorf("make directory for the result: %w", err)
			}
			var err error
			if options.Result, err = filepath.Abs(options.Result); err != nil {
				return err
			}
			return runLab(command.Context(), *name, 3, options)
		},
	}
	command.Flags().BoolVar(&options.Once, "once", false, "exit at the end of the demonstration; fail unless all of it worked")
	command.Flags().StringVar(&options.Result, "result", filepath.Join("build", "demo.json"), "file for the outcome")
	return command
}

// runLab prepares and runs a lab until it ends.
func runLab(ctx context.Context, name string, nodes int, options demo.Options) error {
	if nodes < 1 || nodes > 80 {
		return errors.New("--nodes: must be 1 to 80")
	}
	if err := lab.InstallMissing(ctx, os.Stderr, false); err != nil {
		if err := lab.Check(); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "Continuing without programs that only you would use:", err)
	}
	setup, err := lab.Prepare(ctx, name)
	if err != nil {
		return err
	}
	setup.Nodes = nodes
	_, err = unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	options.Colour = err == nil && os.Getenv("NO_COLOR") == ""
	options.Command = commandName()
	code, err := demo.Run(ctx, setup, options)
	if err != nil {
		return err
	}
	if code != 0 {
		return cli.ExitError(code)
	}
	return nil
}

// commandName returns how the user calls this program.
func commandName() string {
	if path, err := os.Executable(); err == nil && strings.Contains(path, "go-build") {
		return "go run ./cmd/causeway-lab"
	}
	return os.Args[0]
}

func newShellCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "shell client|lan|NODE|pod/NAME [-- COMMAND...]",
		Short: "Run a shell, or a command, on a machine or in a Pod of a running lab",
		Long: `A shell on a machine or in a Pod of a running lab. A Pod outside of the namespace
default is pod/NAMESPACE/NAME. The beginning of a name is enough; of several Pods,
the first is taken.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			command := args[1:]
			if len(command) == 0 {
				command = []string{"bash", "--norc"}
			}
			chain, err := lab.ShellCommand(*name, args[0], command)
			if err != nil {
				return err
			}
			path, err := exec.LookPath(chain[0])
			if err != nil {
				return fmt.Errorf("find nsenter: %w: install util-linux", err)
			}
			env := append(os.Environ(), "PS1="+args[0]+"# ", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
			return fmt.Errorf("execute nsenter: %w", syscall.Exec(path, chain, env))
		},
	}
}

func newLogsCommand(name *string) *cobra.Command {
	var follow bool
	command := &cobra.Command{
		Use:   "logs [NAMESPACE/]POD",
		Short: "Print the output of a Pod's containers; works for a lab that has failed, too",
		Args:  cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			files, err := lab.PodLogs(*name, args[0])
			if err != nil {
				return err
			}
			return printLogs(command.Context(), command.OutOrStdout(), files, follow)
		},
	}
	command.Flags().BoolVarP(&follow, "follow", "f", false, "print what is added until Ctrl-C")
	return command
}

func printLogs(ctx context.Context, out io.Writer, paths []string, follow bool) error {
	files := make([]*os.File, 0, len(paths))
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		files = append(files, file)
	}
	for {
		for i, file := range files {
			data, err := io.ReadAll(file)
			if err != nil {
				return err
			}
			if len(data) > 0 && len(files) > 1 {
				fmt.Fprintf(out, "==> %s <==\n", paths[i])
			}
			if _, err := out.Write(data); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func newNodeCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "node off|on|cut|mend|isolate|rejoin NODE",
		Short: "Pull a node's plug, or its network cable",
		Long: `off      kill every process of the node, and cut its link
on       start it again
cut      take its link down; mend puts it back
isolate  have the switch drop its packets, with the link up; rejoin ends that`,
		Args: cobra.ExactArgs(2),
		RunE: func(command *cobra.Command, args []string) error {
			return lab.Control(command.Context(), *name, args[1], args[0])
		},
	}
}

func newDepsCommand() *cobra.Command {
	var tests bool
	command := &cobra.Command{
		Use:   "deps",
		Short: "Install the programs that the lab calls (as root on Debian), or list which are missing",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return lab.InstallMissing(command.Context(), os.Stderr, tests)
		},
	}
	command.Flags().BoolVar(&tests, "tests", false, "also those that only tests call")
	return command
}

func newCleanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Remove the logs of labs that have ended",
		Long: `Remove the logs of labs that have ended. Processes and namespaces of a lab end with it,
however it ends; its logs are all that can be left.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			removed, running, err := lab.Clean()
			for _, name := range removed {
				fmt.Fprintln(command.OutOrStdout(), "Removed the logs of", name)
			}
			for _, name := range running {
				fmt.Fprintln(command.OutOrStdout(), "Still running:", name)
			}
			return err
		},
	}
}
