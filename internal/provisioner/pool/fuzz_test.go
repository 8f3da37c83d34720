// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"testing"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// FuzzFromAddress reads records as the API's type can hold them, as JSON: a bad
// one is an error, and a good one is that of its address.
func FuzzFromAddress(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"192.0.2.7"},"spec":{"address":"192.0.2.7","pool":"lan","services":[{"namespace":"a","name":"b","uid":"c"}]}}`))
	f.Add([]byte(`{"metadata":{"name":"2001-0db8-0000-0000-0000-0000-0000-0007"},"spec":{"address":"2001:db8::7","releasedAt":"2026-01-01T00:00:00Z","releasedBy":{}},"status":{"conditions":[{"type":"Announced"},{"type":"Conflict","status":"True"}]}}`))
	f.Add([]byte(`{"metadata":{"name":"192.0.2.7"},"spec":{"address":"::ffff:192.0.2.7"}}`))
	f.Add([]byte(`{"spec":{"address":"192.0.2.7/24","reservedFor":null}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a := &v1alpha1.LoadBalancerAddress{}
		if json.Unmarshal(text, a) != nil {
			return
		}
		r, err := FromAddress(a)
		if err != nil {
			return
		}
		if !r.Address.IsValid() || r.Address.Is4In6() || v1alpha1.LoadBalancerAddressName(r.Address) != a.Name || len(r.Owners) != len(a.Spec.Services) {
			t.Errorf("%s is read as %+v", text, r)
		}
	})
}
