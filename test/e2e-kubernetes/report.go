// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// unrunnable is the list of specs that cannot run here.
type unrunnable []struct {
	pattern *regexp.Regexp
	reason  string
}

// readUnrunnable reads lines "REASON: PATTERN"; # begins a comment.
func readUnrunnable(path string) (list unrunnable, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		reason, text, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("%s: %q: want REASON: PATTERN", path, line)
		}
		pattern, err := regexp.Compile(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		list = append(list, struct {
			pattern *regexp.Regexp
			reason  string
		}{pattern, reason})
	}
	return list, nil
}

func (l unrunnable) patterns() (out []string) {
	for _, entry := range l {
		out = append(out, entry.pattern.String())
	}
	return out
}

// reason returns why a spec cannot run here, empty for one that can.
func (l unrunnable) reason(spec string) string {
	for _, entry := range l {
		if entry.pattern.MatchString(spec) {
			return entry.reason
		}
	}
	return ""
}

func readReport(path string) (types.Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return types.Report{}, err
	}
	var reports []types.Report
	if err := json.Unmarshal(data, &reports); err != nil {
		return types.Report{}, fmt.Errorf("read %s: %w", path, err)
	}
	if len(reports) != 1 {
		return types.Report{}, fmt.Errorf("read %s: %d suites, want 1", path, len(reports))
	}
	return reports[0], nil
}

// summary is build/e2e-kubernetes.json, and what the table is made of.
type summary struct {
	Passed  int     `json:"passed"`
	Failed  int     `json:"failed"`
	Skipped int     `json:"skipped"`
	Mode    string  `json:"mode"`
	Version string  `json:"version"`
	Seconds float64 `json:"seconds"`

	rows  []row
	stale []string // patterns of unrunnable.txt that match nothing
}

// row is one spec that ran, or skipped itself, or cannot run here.
type row struct {
	name, result, why string
	took              time.Duration
}

func summarize(report types.Report, list unrunnable, o options, version string, took time.Duration) summary {
	s := summary{Mode: o.mode, Version: version, Seconds: took.Round(time.Second).Seconds()}
	var names []string
	chosen := regexp.MustCompile(focus(o.focus))
	for _, spec := range report.SpecReports {
		name := spec.FullText()
		if spec.LeafNodeType != types.NodeTypeIt {
			if spec.Failed() { // the suite's own preparation
				s.Failed++
				s.rows = append(s.rows, row{spec.LeafNodeType.String(), "failed", spec.Failure.Message, spec.RunTime})
			}
			continue
		}
		names = append(names, name)
		r := row{name: name, took: spec.RunTime}
		switch reason := list.reason(name); {
		case spec.State == types.SpecStatePassed:
			s.Passed++
			r.result = "passed"
		case spec.Failed():
			s.Failed++
			r.result, r.why = "failed", spec.Failure.Message
		case !chosen.MatchString(name):
			continue
		case reason != "":
			s.Skipped++
			r.result, r.why = "cannot run here", reason
		case spec.State == types.SpecStateSkipped && spec.Failure.Message != "":
			s.Skipped++
			r.result, r.why = "skipped itself", spec.Failure.Message
		default:
			continue // left out by -skip
		}
		s.rows = append(s.rows, r)
	}
	for _, entry := range list {
		if !slices.ContainsFunc(names, entry.pattern.MatchString) {
			s.stale = append(s.stale, entry.pattern.String())
		}
	}
	slices.SortStableFunc(s.rows, func(a, b row) int { return strings.Compare(a.result+a.name, b.result+b.name) })
	return s
}

// err says what is wrong, nil when all specs that can run here passed.
func (s *summary) err() error {
	var errs []error
	if s.Failed > 0 {
		errs = append(errs, fmt.Errorf("%d specs failed", s.Failed))
	}
	if s.Passed == 0 {
		errs = append(errs, errors.New("no spec passed"))
	}
	for _, r := range s.rows {
		if r.result == "skipped itself" {
			errs = append(errs, fmt.Errorf("skipped itself and is not in unrunnable.txt: %s: %s", r.name, firstLine(r.why)))
		}
	}
	for _, pattern := range s.stale {
		errs = append(errs, fmt.Errorf("unrunnable.txt: nothing matches %s", pattern))
	}
	return errors.Join(errs...)
}

func (s *summary) text() string {
	var out strings.Builder
	for _, r := range s.rows {
		if r.result == "failed" || r.result == "skipped itself" {
			fmt.Fprintf(&out, "%s: %s\n  %s\n", r.result, r.name, firstLine(r.why))
		}
	}
	fmt.Fprintf(&out, "Kubernetes %s, mode %s: %d passed, %d failed, %d skipped, %.0f s\n", s.Version, s.Mode, s.Passed, s.Failed, s.Skipped, s.Seconds)
	return out.String()
}

func (s *summary) write(dir string) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	var table strings.Builder
	fmt.Fprintf(&table, "# [sig-network] of Kubernetes %s, mode %s\n\n%d passed, %d failed, %d skipped, %.0f s.\n\n| Spec | Result | Seconds | Why |\n|---|---|---|---|\n",
		s.Version, s.Mode, s.Passed, s.Failed, s.Skipped, s.Seconds)
	for _, r := range s.rows {
		fmt.Fprintf(&table, "| %s | %s | %.1f | %s |\n", cell(r.name), r.result, r.took.Seconds(), cell(firstLine(r.why)))
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "table.md"), []byte(table.String()), 0o644),
		os.WriteFile(filepath.Clean(dir)+".json", append(data, '\n'), 0o644))
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
