// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrite(t *testing.T) {
	peer := Summarise("kube-proxy v1.37.2 nftables", []float64{12, 14, 13})
	slow := Summarise("stock", []float64{100})
	r := &Report{Bench: "nftables-sync"}
	r.Add(Line{Case: "10000x5", Metric: "full_sync", Unit: "s", Ours: Summarise("", []float64{0.3, 0.1, 0.2}), Peer: &peer})
	r.Add(Line{Case: "10000x5", Metric: "creates_per_s", Unit: "1/s", Ours: Summarise("", []float64{150}), Peer: &slow, MoreIsBetter: true})
	r.Add(Line{Case: "50000x5", Metric: "full_sync", Unit: "s", Ours: Summarise("", []float64{1.17})})

	dir := t.TempDir()
	var table strings.Builder
	if err := r.Write(&table, dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "nftables-sync.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got []Line
	for line := range strings.Lines(string(data)) {
		var l Line
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got = append(got, l)
	}
	want := []Line{
		{Bench: "nftables-sync", Case: "10000x5", Metric: "full_sync", Unit: "s",
			Ours: Figures{P50: 0.2, P99: 0.298, N: 3}, Peer: &Figures{Name: "kube-proxy v1.37.2 nftables", P50: 13, P99: 13.98, N: 3}, Ratio: 65},
		{Bench: "nftables-sync", Case: "10000x5", Metric: "creates_per_s", Unit: "1/s",
			Ours: Figures{P50: 150, P99: 150, N: 1}, Peer: &Figures{Name: "stock", P50: 100, P99: 100, N: 1}, Ratio: 1.5},
		{Bench: "nftables-sync", Case: "50000x5", Metric: "full_sync", Unit: "s", Ours: Figures{P50: 1.17, P99: 1.17, N: 1}},
	}
	near := cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })
	if diff := cmp.Diff(want, got, near); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, text := range []string{"kube-proxy v1.37.2 nftables", "65.0", "0.200", "cores"} {
		if !strings.Contains(table.String(), text) {
			t.Errorf("the table lacks %q:\n%s", text, table.String())
		}
	}
}

func TestNothingMeasuredIsAnError(t *testing.T) {
	if err := (&Report{Bench: "x"}).Write(&strings.Builder{}, t.TempDir()); err == nil {
		t.Error("an empty report was written")
	}
	r := &Report{Bench: "x"}
	r.Add(Line{Case: "c", Metric: "m", Ours: Summarise("", nil)})
	if err := r.Write(&strings.Builder{}, t.TempDir()); err == nil {
		t.Error("a metric without samples was written")
	}
}
