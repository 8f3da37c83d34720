// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"

	"github.com/causeway-lb/causeway/internal/inspect"
)

// Inspector is a Backend that says what its kernel has; every mode is one.
type Inspector interface {
	Backend
	// Inspect reads the kernel, and changes nothing. It costs as much as to read
	// everything back.
	Inspect(ctx context.Context) (inspect.State, error)
}
