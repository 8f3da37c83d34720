// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
)

// loadBalancer waits for a Service's address on the LAN.
func loadBalancer(t *testing.T, ctx context.Context, name string) netip.Addr {
	t.Helper()
	var address netip.Addr
	eventually(t, ctx, 20*time.Second, "address of "+name, func() error {
		var s corev1.Service
		if err := api.Get(ctx, types.NamespacedName{Namespace: "default", Name: name}, &s); err != nil {
			return err
		}
		if len(s.Status.LoadBalancer.Ingress) == 0 {
			return fmt.Errorf("none yet: %v", s.Status.Conditions)
		}
		var err error
		address, err = netip.ParseAddr(s.Status.LoadBalancer.Ingress[0].IP)
		return err
	})
	return address
}

// TestPHP applies the sample's manifests and gets a page from the LAN: client
// -> LoadBalancer -> nginx -> cluster DNS -> ClusterIP -> php-fpm.
func TestPHP(t *testing.T) {
	ctx := need(t)
	sample := filepath.Join(cluster.Setup.Source, "config", "samples", "php")
	shared := t.TempDir()
	for dir := shared; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755) // php-fpm's workers read it as www-data
	}
	if err := os.CopyFS(shared, os.DirFS(filepath.Join(sample, "shared"))); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"php.yaml", "nginx.yaml"} {
		text, err := os.ReadFile(filepath.Join(sample, file))
		if err != nil {
			t.Fatal(err)
		}
		manifest := strings.ReplaceAll(string(text), "/srv/causeway-php", shared)
		if _, err := cluster.Kubectl(ctx, strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := cluster.Kubectl(context.Background(), strings.NewReader(manifest), "delete", "--wait=true", "-f", "-"); err != nil {
				t.Error(err)
			}
		})
	}
	for _, name := range []string{"php", "nginx"} {
		if err := cluster.WaitDeployment(ctx, "default", name); err != nil {
			t.Fatal(err)
		}
	}
	address := frontend(loadBalancer(t, ctx, "nginx-svc"), 38000)
	hosts := map[string]bool{}
	eventually(t, ctx, 30*time.Second, "pages from both PHP Pods", func() error {
		page, err := get(ctx, address)
		if err != nil {
			return err
		}
		_, rest, ok := strings.Cut(page, " on ")
		if !ok || !strings.Contains(page, "42 times welcome") {
			return fmt.Errorf("the page is %q", page)
		}
		hosts[strings.Fields(rest)[0]] = true
		if len(hosts) < 2 {
			return fmt.Errorf("only from %v", hosts)
		}
		return nil
	})
}

// get asks for / from the client on the LAN.
func get(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return cluster.Machine(lab.Client).Dial(ctx, network, address)
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", response.Status)
	}
	return string(body), err
}

// deploy makes a Deployment of HTTP servers behind an address on the LAN. A
// server that is told to end goes on for two seconds, until every node knows.
func deploy(t *testing.T, ctx context.Context, name string, replicas int32) (*appsv1.Deployment, string) {
	t.Helper()
	labels := map[string]string{"app": name}
	spec := serverSpec()
	spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 2}}}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
			Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{
				MaxUnavailable: new(intstr.FromInt32(0)), MaxSurge: new(intstr.FromInt32(1)),
			}},
		},
	}
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: labels,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
	create(t, ctx, deployment, s)
	if err := cluster.WaitDeployment(ctx, "default", name); err != nil {
		t.Fatal(err)
	}
	address := frontend(loadBalancer(t, ctx, name), 80)
	eventually(t, ctx, 20*time.Second, "an answer from "+address, func() error {
		_, err := get(ctx, address)
		return err
	})
	return deployment, address
}

// change patches the Deployment and waits until all of it is as wanted.
func change(t *testing.T, ctx context.Context, deployment *appsv1.Deployment, patch string) {
	t.Helper()
	if err := api.Patch(ctx, deployment, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
	if err := cluster.WaitDeployment(ctx, "default", deployment.Name); err != nil {
		t.Fatal(err)
	}
}

// asking keeps sending requests; none may fail until the returned function is
// called, which gives the results.
func asking(t *testing.T, ctx context.Context, address string) (stop func() traffic.Results) {
	t.Helper()
	generator := traffic.Generate(ctx, traffic.Config{
		From: cluster.Machine(lab.Client), Address: address, Interval: 25 * time.Millisecond, Timeout: 3 * time.Second,
	})
	return func() traffic.Results {
		results := generator.Stop()
		if failed := results.Failed(); len(failed) > 0 || len(results) < 40 {
			var first error
			if len(failed) > 0 {
				first = failed[0].Err
			}
			t.Errorf("%d of %d requests failed, the first: %v", len(failed), len(results), first)
		}
		return results
	}
}

// TestScale goes from 3 to 10 and back to 1 with a client asking all the time,
// to 0, where connections are refused at once, and up again.
func TestScale(t *testing.T) {
	ctx := need(t)
	deployment, address := deploy(t, ctx, "scaled", 3)
	stop := asking(t, ctx, address)
	change(t, ctx, deployment, `{"spec":{"replicas":10}}`)
	eventually(t, ctx, 20*time.Second, "answers from ten Pods", func() error {
		hosts := map[string]bool{}
		for range 100 {
			result, err := traffic.Ask(ctx, cluster.Machine(lab.Client), address)
			if err != nil {
				return err
			}
			hosts[result.Host] = true
		}
		if len(hosts) != 10 {
			return fmt.Errorf("from %d", len(hosts))
		}
		return nil
	})
	change(t, ctx, deployment, `{"spec":{"replicas":1}}`)
	time.Sleep(4 * time.Second) // the Pods on their way out answer meanwhile
	stop()

	change(t, ctx, deployment, `{"spec":{"replicas":0}}`)
	eventually(t, ctx, 20*time.Second, "refusal", func() error {
		began := time.Now()
		if _, err := get(ctx, address); err == nil || !strings.Contains(err.Error(), "refused") || time.Since(began) > time.Second {
			return fmt.Errorf("after %s: %v", time.Since(began), err)
		}
		return nil
	})
	change(t, ctx, deployment, `{"spec":{"replicas":3}}`)
	eventually(t, ctx, 20*time.Second, "an answer again", func() error {
		_, err := get(ctx, address)
		return err
	})
}

// TestRollingUpdate replaces every Pod of a Deployment under load.
func TestRollingUpdate(t *testing.T) {
	ctx := need(t)
	deployment, address := deploy(t, ctx, "rolling", 3)
	stop := asking(t, ctx, address)
	change(t, ctx, deployment, `{"spec":{"template":{"spec":{"containers":[{"name":"server","env":[{"name":"VERSION","value":"2"}]}]}}}}`)
	eventually(t, ctx, 20*time.Second, "answers from version 2 only", func() error {
		for range 20 {
			answer, err := traffic.Ask(ctx, cluster.Machine(lab.Client), address)
			if err != nil {
				return err
			}
			if answer.Version != "2" {
				return fmt.Errorf("version %q", answer.Version)
			}
		}
		return nil
	})
	time.Sleep(3 * time.Second)
	hosts := stop().Hosts()
	if len(hosts) < 6 {
		t.Errorf("answers from %d Pods, want three old and three new ones", len(hosts))
	}
}
