// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/causeway-lb/causeway/internal/testkit/reference"
)

func TestFlagsAreDocumented(t *testing.T) { reference.CheckCommands(t, newCommand()) }
