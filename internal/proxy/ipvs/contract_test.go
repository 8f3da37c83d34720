// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
)

func TestContract(t *testing.T) {
	backendtest.Run(t, func(t testing.TB) backend.Backend { return newTestBackend(t, Config{}) })
}
