// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"os"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/test/replica"
)

// hold is how long a grant is kept in these tests: long beside a request, short
// beside a test.
const hold = 5 * time.Second

func TestMain(m *testing.M) {
	replica.Main()
	os.Exit(m.Run())
}
