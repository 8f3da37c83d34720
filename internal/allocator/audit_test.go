// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/alloc/services"
)

// A leadership begins though another audit does not come to its end.
func TestAuditOfNewLeadershipDoesNotWait(t *testing.T) {
	audit := NewPortAudit(nil, NewState(services.Config{}, time.Now, func(Change) {}), "causeway-system")
	audit.running <- struct{}{}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	audit.Begin(short)
}
