// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/internal/quote"
)

// Level says how much a finding matters.
type Level uint8

// The levels.
const (
	Fine  Level = iota
	Note        // worth knowing; may be meant so
	Wrong       // keeps clients, or some of them, from being served
)

// String gives the word that a line begins with.
func (l Level) String() string { return [...]string{"ok", "note", "WRONG"}[l] }

// Finding is one thing that was looked at.
type Finding struct {
	Level Level
	Text  string
	// Details are lines of their own, one a Pod or node.
	Details []string
	// Do is what to do about it; empty when Text says so.
	Do string
}

// Report is all there is to say about a Service.
type Report struct {
	Title    string
	Findings []Finding
	Lately   []string // the last events
}

// Wrong counts the findings that are.
func (r *Report) Wrong() (n int) {
	for _, f := range r.Findings {
		if f.Level == Wrong {
			n++
		}
	}
	return n
}

// add appends a finding and returns it, for what else there is to say.
func (r *Report) add(level Level, format string, args ...any) *Finding {
	r.Findings = append(r.Findings, Finding{Level: level, Text: fmt.Sprintf(format, args...)})
	return &r.Findings[len(r.Findings)-1]
}

const (
	maxDetails = 10
	maxEvents  = 5
)

// WriteTo writes the report for people.
func (r *Report) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", quote.Line(r.Title))
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "  %-5s  %s\n", f.Level, sentence(quote.Line(f.Text)))
		for i, d := range f.Details {
			if i == maxDetails {
				fmt.Fprintf(&b, "           and %d more\n", len(f.Details)-i)
				break
			}
			fmt.Fprintf(&b, "           %s\n", quote.Line(d))
		}
		if f.Do != "" {
			fmt.Fprintf(&b, "         -> %s\n", sentence(quote.Line(f.Do)))
		}
	}
	if len(r.Lately) > 0 {
		b.WriteString("\n  Last events:\n")
	}
	for _, e := range r.Lately {
		fmt.Fprintf(&b, "    %s\n", quote.Line(e))
	}
	switch n := r.Wrong(); n {
	case 0:
		b.WriteString("\nNothing wrong found.\n")
	case 1:
		b.WriteString("\nOne thing is wrong.\n")
	default:
		fmt.Fprintf(&b, "\n%d things are wrong.\n", n)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// sentence ends with a full stop, unless with a question: the messages of conditions do not.
func sentence(s string) string {
	if s == "" || strings.ContainsAny(s[len(s)-1:], ".?!") {
		return s
	}
	return s + "."
}

// many counts things: "1 Pod", "2 Pods".
func many(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// ago is a time span as people say it: 45s, 3m, 5h, 2d.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
