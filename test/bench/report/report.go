// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// Figures summarise the samples of one side.
type Figures struct {
	// Name is the peer's name and version; empty for ours.
	Name string  `json:"name,omitempty"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	N    int     `json:"n"`
}

// Summarise gives the figures of samples, which it leaves as they are. No
// samples give NaN, which Write refuses.
func Summarise(name string, samples []float64) Figures {
	sorted := slices.Sorted(slices.Values(samples))
	return Figures{Name: name, P50: quantile(sorted, 0.50), P99: quantile(sorted, 0.99), N: len(sorted)}
}

// quantile interpolates between the samples beside q.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// Line is one metric of one case.
type Line struct {
	Bench  string   `json:"bench"`
	Case   string   `json:"case"`
	Metric string   `json:"metric"`
	Unit   string   `json:"unit"`
	Ours   Figures  `json:"ours"`
	Peer   *Figures `json:"peer,omitempty"`
	// Ratio is filled in by Add; 0 where there is no peer.
	Ratio float64 `json:"ratio,omitempty"`
	// MoreIsBetter is true for rates.
	MoreIsBetter bool `json:"-"`
}

// Report collects the lines of one benchmark.
type Report struct {
	Bench string
	lines []Line
}

// Add adds a metric. Peer is nil where there is nothing to compare with.
func (r *Report) Add(line Line) {
	line.Bench = r.Bench
	if line.Peer != nil {
		line.Ratio = line.Peer.P50 / line.Ours.P50
		if line.MoreIsBetter {
			line.Ratio = line.Ours.P50 / line.Peer.P50
		}
	}
	r.lines = append(r.lines, line)
}

// Lines returns what was added.
func (r *Report) Lines() []Line { return slices.Clone(r.lines) }

// Write prints the table to w, and the lines to dir/<bench>.json.
func (r *Report) Write(w io.Writer, dir string) error {
	if len(r.lines) == 0 {
		return errors.New("write report: nothing was measured")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of reports: %w", err)
	}
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	for _, line := range r.lines {
		if err := encoder.Encode(line); err != nil {
			return fmt.Errorf("encode %s %s: %w", line.Case, line.Metric, err)
		}
	}
	path := filepath.Join(dir, r.Bench+".json")
	if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return r.table(w)
}

func (r *Report) table(w io.Writer) error {
	fmt.Fprintf(w, "\n%s on %s\n\n", r.Bench, Machine())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "case\tmetric\tunit\tours p50\tp99\tn\tpeer p50\tp99\tn\ttimes better\t")
	peers := map[string]bool{}
	for _, l := range r.lines {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t", l.Case, l.Metric, l.Unit, short(l.Ours.P50), short(l.Ours.P99), l.Ours.N)
		if l.Peer == nil {
			fmt.Fprintln(t, "\t\t\t\t")
			continue
		}
		peers[l.Peer.Name] = true
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t\n", short(l.Peer.P50), short(l.Peer.P99), l.Peer.N, short(l.Ratio))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for name := range peers {
		fmt.Fprintf(w, "peer: %s\n", name)
	}
	return nil
}

// short prints three significant digits without an exponent.
func short(x float64) string {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return fmt.Sprint(x)
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(x))))
	return fmt.Sprintf("%.*f", max(0, digits), x)
}

// Machine describes the machine: cores, processor, memory, kernel, Go.
func Machine() string {
	text := fmt.Sprintf("%d cores", runtime.NumCPU())
	if model := field("/proc/cpuinfo", "model name"); model != "" {
		text += " of " + model
	}
	if memory := field("/proc/meminfo", "MemTotal"); memory != "" {
		text += ", " + memory
	}
	if kernel, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		text += ", Linux " + strings.TrimSpace(string(kernel))
	}
	return text + ", " + runtime.Version()
}

// field returns the value of the first "name: value" line of a file.
func field(path, name string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
