// SPDX-License-Identifier: Apache-2.0

// Command causeway-lab runs a bare-metal cluster with Causeway in network
// namespaces of this machine. It is for the demonstration and for development;
// what operators use is the command causeway.
package main

import (
	"os"

	"github.com/causeway-lb/causeway/internal/cli"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

func main() {
	reexec.Init()
	os.Exit(cli.Run(newCommand()))
}
