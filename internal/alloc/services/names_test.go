// SPDX-License-Identifier: Apache-2.0

package services

import (
	"testing"

	"github.com/causeway-lb/causeway/internal/alloc"
)

func TestNameForOtherNamespace(t *testing.T) {
	for _, test := range []struct{ namespace, want string }{{"shop", "Service shop/web"}, {"other", "a Service of another namespace"}} {
		if got := toldOf(alloc.Owner{Namespace: "shop", Name: "web"}, alloc.Owner{Namespace: test.namespace}); got != test.want {
			t.Errorf("to %s: %q, want %q", test.namespace, got, test.want)
		}
	}
}
