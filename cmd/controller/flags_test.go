// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/causeway-lb/causeway/internal/testkit/reference"
)

func TestFlagsAreDocumented(t *testing.T) {
	fs := flag.NewFlagSet("controller", flag.ContinueOnError)
	config.RegisterFlags(fs) // main's, which every package may add to, has them
	new(flags).register(fs)
	defaults := map[string]string{}
	fs.VisitAll(func(f *flag.Flag) { defaults[f.Name] = f.DefValue })
	reference.CheckFlags(t, "`controller`", defaults)
}
