// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/lab/demoserver"
)

// sequence makes results 10 ms apart: a letter is the host that answered, a
// dot a failure.
func sequence(s string) Results {
	start := time.Unix(1000, 0)
	var results Results
	for i, c := range s {
		r := Result{Sent: start.Add(time.Duration(i) * 10 * time.Millisecond)}
		r.Done = r.Sent.Add(time.Millisecond)
		if r.Answer = (demoserver.Answer{Host: string(c), ClientIP: "192.0.2.100"}); c == '.' {
			r.Answer, r.Err = demoserver.Answer{}, errors.New("timeout")
		}
		results = append(results, r)
	}
	return results
}

func TestResults(t *testing.T) {
	const never = -1
	for _, test := range []struct {
		name, sequence        string
		failed                int
		outage, steady, first time.Duration // in steps of 10 ms
	}{
		{"all well", "aabba", 0, 0, 0, 0},
		{"one lost", "aa.bb", 1, 2, 3, 0},
		{"two outages", "a.b...c", 4, 4, 6, 0},
		{"from the beginning", "..ab", 2, 2, 2, 2},
		{"to the end", "ab...", 3, 3, never, 0},
		{"never", "....", 4, 3, never, never},
		{"nothing sent", "", 0, 0, never, never},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := sequence(test.sequence)
			if got := len(r.Failed()); got != test.failed {
				t.Errorf("%d failed, want %d", got, test.failed)
			}
			if got := r.LongestOutage(); got != test.outage*10*time.Millisecond {
				t.Errorf("outage %s, want %s", got, test.outage*10*time.Millisecond)
			}
			steady, ok := r.Steady()
			if ok != (test.steady != never) || ok && steady.Sub(r[0].Sent) != test.steady*10*time.Millisecond {
				t.Errorf("steady from %s (%t), want %d", steady, ok, test.steady)
			}
			first, ok := r.FirstAnswer()
			if ok != (test.first != never) || ok && first.Sub(r[0].Sent) != test.first*10*time.Millisecond+time.Millisecond {
				t.Errorf("first answer %s (%t), want %d", first, ok, test.first)
			}
		})
	}
}

func TestCounts(t *testing.T) {
	r := sequence("ab.a")
	if diff := cmp.Diff(map[string]int{"a": 2, "b": 1}, r.Hosts()); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"192.0.2.100": 3}, r.Sources()); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	if got := len(r.Since(r[2].Sent)); got != 2 {
		t.Errorf("%d since the third, want 2", got)
	}
}
