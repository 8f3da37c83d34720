// SPDX-License-Identifier: Apache-2.0

// Command build makes sure that the named programs of a Kubernetes control
// plane are in the cache and prints their directory.
//
//	KUBEBUILDER_ASSETS=$(go run ./internal/lab/controlplane/build etcd kube-apiserver)
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/causeway-lb/causeway/internal/lab/controlplane"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	names := os.Args[1:]
	if len(names) == 0 {
		names = controlplane.Programs()
	}
	dir, err := controlplane.Assets(ctx, names...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		return 1
	}
	fmt.Println(dir)
	return 0
}
