// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-lb/causeway/internal/proxy/none"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
)

// fakeProc is a node's settings as Linux has them at first.
func fakeProc(t *testing.T, cores string) sysctls {
	t.Helper()
	dir := t.TempDir()
	s := sysctls{proc: dir, hashSize: filepath.Join(dir, "hashsize"), online: filepath.Join(dir, "online")}
	must(t, os.MkdirAll(filepath.Join(dir, "net/netfilter"), 0o755))
	for name, value := range map[string]string{
		"nf_conntrack_max": "65536", "nf_conntrack_tcp_timeout_established": "432000", "nf_conntrack_tcp_timeout_close_wait": "60",
		"nf_conntrack_udp_timeout": "30", "nf_conntrack_udp_timeout_stream": "120", "nf_conntrack_tcp_be_liberal": "0",
	} {
		must(t, os.WriteFile(filepath.Join(dir, "net/netfilter", name), []byte(value+"\n"), 0o644))
	}
	must(t, os.WriteFile(s.hashSize, []byte("16384\n"), 0o644))
	must(t, os.WriteFile(s.online, []byte(cores+"\n"), 0o644))
	return s
}

// values are the settings, without "nf_conntrack_".
func (s sysctls) values(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := filepath.Glob(filepath.Join(s.proc, "net/netfilter/*"))
	must(t, err)
	for _, file := range append(files, s.hashSize) {
		text, err := os.ReadFile(file)
		must(t, err)
		out[strings.TrimPrefix(filepath.Base(file), "nf_conntrack_")] = strings.TrimSpace(string(text))
	}
	return out
}

// kubeProxys are kube-proxy's settings.
var kubeProxys = ConntrackConfig{MaxPerCore: 32768, Min: 131072, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour}

func TestConntrackSettings(t *testing.T) {
	tests := []struct {
		name  string
		cores string
		c     ConntrackConfig
		had   map[string]string // before
		want  map[string]string // differing from what Linux has
	}{
		{"none", "0-3", ConntrackConfig{Min: 131072}, nil, nil},
		{"kube-proxy's, few cores", "0-1", kubeProxys, nil, map[string]string{
			"max": "131072", "hashsize": "32768", "tcp_timeout_established": "86400", "tcp_timeout_close_wait": "3600"}},
		{"many cores", "0-5,8-9", kubeProxys, nil, map[string]string{
			"max": "262144", "hashsize": "65536", "tcp_timeout_established": "86400", "tcp_timeout_close_wait": "3600"}},
		{"very many cores", "0-255", ConntrackConfig{MaxPerCore: 32768}, nil, map[string]string{"max": "1048576", "hashsize": "262144"}},
		{"more than asked for is kept", "0", ConntrackConfig{MaxPerCore: 32768, Min: 131072},
			map[string]string{"max": "500000", "hashsize": "125000"}, map[string]string{"max": "500000", "hashsize": "125000"}},
		{"timeouts that were longer and shorter", "0", ConntrackConfig{TCPEstablished: 24 * time.Hour, UDP: 10 * time.Second, UDPStream: 3 * time.Minute}, nil,
			map[string]string{"tcp_timeout_established": "86400", "udp_timeout": "10", "udp_timeout_stream": "180"}},
		{"liberal", "0", ConntrackConfig{TCPBeLiberal: true}, nil, map[string]string{"tcp_be_liberal": "1"}},
		{"liberal stays", "0", ConntrackConfig{}, map[string]string{"tcp_be_liberal": "1"}, map[string]string{"tcp_be_liberal": "1"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			s := fakeProc(t, tc.cores)
			want := s.values(t)
			for name, value := range tc.had {
				file := s.hashSize
				if name != "hashsize" {
					file = filepath.Join(s.proc, "net/netfilter/nf_conntrack_"+name)
				}
				must(t, os.WriteFile(file, []byte(value), 0o644))
			}
			for name, value := range tc.want {
				want[name] = value
			}
			for range 2 {
				if left, err := s.apply(tc.c); err != nil || left != nil {
					t.Fatalf("left %v: %v", left, err)
				}
				if diff := cmp.Diff(want, s.values(t)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// What cannot be set is told once, and does not keep the rest from being set.
func TestConntrackSettingsNotWritable(t *testing.T) {
	s := fakeProc(t, "0-7")
	missing := filepath.Join(s.proc, "net/netfilter/nf_conntrack_max")
	must(t, os.Remove(missing))
	synctest.Test(t, func(t *testing.T) {
		idle, err := none.New(none.Config{})
		must(t, err)
		sync, err := syncer.New(syncer.Config{Backend: idle, Source: noServices{}})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		recorder, registry := events.NewFakeRecorder(8), prometheus.NewRegistry()
		ended := make(chan error, 2)
		go func() { ended <- sync.Run(ctx) }()
		go func() {
			ended <- conntrackPart(kubeProxys, s, time.Minute).Run(ctx, Env{NodeName: "node-1", Store: NewStore(), Syncer: sync, Recorder: recorder, Registry: registry})
		}()
		time.Sleep(5 * time.Minute)
		if n := len(recorder.Events); n != 1 {
			t.Fatalf("%d events, want one", n)
		}
		if got := <-recorder.Events; !strings.Contains(got, "ConntrackNotSet") || !strings.Contains(got, "set net.netfilter.nf_conntrack_max=262144 on this node") {
			t.Errorf("event %q", got)
		}
		if got := s.values(t)["tcp_timeout_close_wait"]; got != "3600" {
			t.Errorf("tcp_timeout_close_wait is %s, want 3600", got)
		}
		if v := gathered(t, registry)["causeway_conntrack_sysctls_unset"]; v != 1 {
			t.Errorf("metric %v, want 1", v)
		}
		must(t, os.WriteFile(missing, []byte("65536"), 0o644)) // the module is loaded late
		time.Sleep(2 * time.Minute)
		if got := s.values(t)["max"]; got != "262144" {
			t.Errorf("max is %s, want 262144", got)
		}
		if v := gathered(t, registry)["causeway_conntrack_sysctls_unset"]; v != 0 {
			t.Errorf("metric %v, want 0", v)
		}
		cancel()
		for range 2 {
			must(t, <-ended)
		}
	})
}

// gathered sums up gauges and counters by name.
func gathered(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	must(t, err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}
