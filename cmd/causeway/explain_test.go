// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/causeway-lb/causeway/internal/cli"
	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/testkit/confine"
)

func TestMain(m *testing.M) { os.Exit(confine.Run(m.Run)) }

// The command line, the exit status and the kubeconfig, at an API server where
// Causeway is not installed.
func TestExplain(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	assets, err := controlplane.Assets(t.Context(), "etcd", "kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	env := &envtest.Environment{BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: time.Minute}
	config, err := env.Start()
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop API server: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, svc := range []*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Name: "alias"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}},
		{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}}},
	} {
		svc.Namespace = "default"
		if err := api.Create(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, env.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"nothing wrong", []string{"default/alias"}, 0, []string{"It is a DNS alias of example.com", "Nothing wrong found."}},
		{"something wrong", []string{"web", "-n", "default"}, 1, []string{
			"WRONG  Its selector app=web matches no Pod", "note   Not looked at: LoadBalancerAddresses: the API server does not know them", "things are wrong.",
		}},
		{"no such Service", []string{"default/wbe"}, 2, nil},
		{"no such context", []string{"default/web", "--context", "nowhere"}, 2, nil},
		{"no API server", []string{"default/web", "--kubeconfig", filepath.Join(t.TempDir(), "none")}, 2, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			command := newCommand()
			var out bytes.Buffer
			command.SetOut(&out)
			command.SetArgs(append([]string{"explain", "--kubeconfig", kubeconfig}, tc.args...))
			code := 0
			if err := command.ExecuteContext(t.Context()); err != nil {
				exit := cli.ExitError(0)
				if !errors.As(err, &exit) {
					t.Fatalf("no exit code: %v", err)
				}
				code = int(exit)
			}
			if code != tc.code {
				t.Errorf("exit status %d, want %d", code, tc.code)
			}
			for _, want := range tc.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the output lacks %q:\n%s", want, out.String())
				}
			}
			if tc.want == nil && out.Len() > 0 {
				t.Errorf("output without an answer:\n%s", out.String())
			}
		})
	}
}
