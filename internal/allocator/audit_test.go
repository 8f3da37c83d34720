// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/alloc/book"
)

// A leadership begins though another audit does not come to its end.
func TestAuditOfANewLeadershipWaitsForNoOther(t *testing.T) {
	audit := NewPortAudit(nil, NewState(book.Config{}, time.Now, func(bool) {}), "causeway-system")
	audit.running <- struct{}{}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	audit.Begin(short)
}
