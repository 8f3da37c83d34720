// SPDX-License-Identifier: Apache-2.0

// Command go-http is the program in the image of config/samples/go-http.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/causeway-lb/causeway/internal/lab/demoserver"
)

func main() { os.Exit(run()) }

func run() int {
	listen := flag.String("listen", ":38001", "address to serve HTTP on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := demoserver.Run(ctx, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "go-http:", err)
		return 1
	}
	return 0
}
