// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"errors"
	"runtime"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// fatal is a test whose helper has failed in the namespace's thread.
type fatal struct {
	testing.TB
	failed bool
}

func (f *fatal) Helper()                   {}
func (f *fatal) Fatalf(_ string, _ ...any) { f.FailNow() }
func (f *fatal) Fatal(_ ...any)            { f.FailNow() }
func (f *fatal) FailNow()                  { f.failed = true; runtime.Goexit() }

// A helper that fails in a namespace ends the test at once, and nothing after it
// is run.
func TestFailureInANamespaceEndsTheTest(t *testing.T) {
	Require(t)
	n := NewNS(t)
	for name, call := range map[string]func(testing.TB){
		"Run":  func(t testing.TB) { n.Run(t, "false") },
		"Must": func(t testing.TB) { n.Must(t, func() error { t.Fatal("no"); return nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			f, after, ended := &fatal{TB: t}, false, make(chan struct{})
			go func() {
				defer close(ended)
				call(f)
				after = true
			}()
			<-ended
			if !f.failed || after {
				t.Errorf("failed: %v, went on: %v", f.failed, after)
			}
		})
	}
	if err := n.Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errEnded) {
		t.Errorf("Do returns %v, want %v", err, errEnded)
	}
}
