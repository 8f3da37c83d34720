// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/labtest"
)

// loadBalancer waits for a Service's address on the LAN.
func loadBalancer(t *testing.T, ctx context.Context, name string) netip.Addr {
	t.Helper()
	var address netip.Addr
	testkit.Eventually(t, 20*time.Second, "address of "+name, func() error {
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
	readable(shared) // php-fpm's workers read it as www-data
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
	testkit.Eventually(t, 30*time.Second, "pages from both PHP Pods", func() error {
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

// readable lets any user into a directory for temporary files.
func readable(dir string) {
	for ; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
}

// TestGoHTTP applies the sample's Deployment and Service and asks them from the
// LAN: 192.0.2.x:30001 -> three Pods' 38001, JSON with ClientIP and Host.
func TestGoHTTP(t *testing.T) {
	ctx := need(t)
	dir := filepath.Join(cluster.Setup.Source, "config", "samples", "go-http")
	for _, file := range []string{"deployment.yaml", "service.yaml"} {
		path := filepath.Join(dir, file)
		if _, err := cluster.Kubectl(ctx, nil, "apply", "-f", path); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := cluster.Kubectl(context.Background(), nil, "delete", "--wait=true", "-f", path); err != nil {
				t.Error(err)
			}
		})
	}
	if err := cluster.WaitDeployment(ctx, "default", "go-http"); err != nil {
		t.Fatal(err)
	}
	pods := map[string]string{} // name -> address
	list, err := cluster.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		pods[list.Items[i].Name] = list.Items[i].Status.PodIP
	}
	if len(pods) != 3 {
		t.Fatalf("%d Pods, want 3", len(pods))
	}
	address := frontend(loadBalancer(t, ctx, "go-http"), 30001)
	seen := map[string]bool{}
	testkit.Eventually(t, 30*time.Second, "answers from all three", func() error {
		page, err := get(ctx, address)
		if err != nil {
			return err
		}
		var answer struct{ ClientIP, Host, ServerIP string }
		if err := json.Unmarshal([]byte(page), &answer); err != nil {
			return fmt.Errorf("read %q: %w", page, err)
		}
		if _, err := netip.ParseAddr(answer.ClientIP); err != nil || pods[answer.Host] == "" || pods[answer.Host] != answer.ServerIP {
			t.Fatalf("answer %+v of none of the Pods %v, or with no ClientIP", answer, pods)
		}
		if seen[answer.Host] = true; len(seen) < 3 {
			return fmt.Errorf("only from %v", seen)
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
	testkit.Eventually(t, 20*time.Second, "an answer from "+address, func() error {
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

// asking sends 40 requests a second until it is stopped, or the test ends.
func asking(t *testing.T, ctx context.Context, address string) *traffic.Generator {
	t.Helper()
	generator := traffic.Generate(ctx, traffic.Config{
		From: cluster.Machine(lab.Client), Address: address, Interval: 25 * time.Millisecond, Timeout: 3 * time.Second,
	})
	t.Cleanup(func() { generator.Stop() })
	return generator
}

// none fails if a request did.
func none(t *testing.T, results traffic.Results) {
	t.Helper()
	failed := results.Failed()
	if len(results) < 40 {
		t.Errorf("%d requests were sent, which says nothing", len(results))
	}
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(failed), len(results), failed[0].Err)
	}
}

// TestScale goes from 3 to 10, to 0 and back to 3 with a client asking all the
// time. No request fails while a Pod is ready, nor while the last one, told to
// end, still serves. From the first refusal on each is refused, at once, until
// the first answer, and from that on each is answered.
func TestScale(t *testing.T) {
	ctx := need(t)
	deployment, address := deploy(t, ctx, "scaled", 3)
	generator := asking(t, ctx, address)
	change(t, ctx, deployment, `{"spec":{"replicas":10}}`)
	testkit.Eventually(t, 20*time.Second, "answers from ten Pods", func() error {
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
	endpoints(t, ctx, "scaled", "those of nine Pods have gone, which answered meanwhile", func(ready, all int) bool { return ready == 1 && all == 1 })
	change(t, ctx, deployment, `{"spec":{"replicas":0}}`)
	endpoints(t, ctx, "scaled", "no ready one", func(ready, _ int) bool { return ready == 0 })
	noneReady := time.Now()
	endpoints(t, ctx, "scaled", "none", func(_, all int) bool { return all == 0 })
	testkit.Eventually(t, 20*time.Second, "refusal", func() error {
		_, err := get(ctx, address)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
		return cmp.Or(err, errors.New("an answer"))
	})
	atNone := time.Now()
	labtest.More(t, ctx, 30, generator)
	back := time.Now()
	change(t, ctx, deployment, `{"spec":{"replicas":3}}`)
	testkit.Eventually(t, 20*time.Second, "an answer again", func() error {
		_, err := get(ctx, address)
		return err
	})
	labtest.More(t, ctx, 30, generator)

	results := generator.Stop()
	down, up := results.Until(back), results.Since(back)
	none(t, down.Before(noneReady))
	turnsOnce(t, down, refused)
	for _, one := range down.Since(atNone) {
		if outcomeOf(one) != refused {
			t.Errorf("a request was not refused while there was no Pod: %s", outcomeOf(one))
		}
	}
	turnsOnce(t, up, answered)
}

// What becomes of a request, if all is well. Anything else (a time-out, a
// reset) is its error's text.
const (
	answered = "answered"
	refused  = "refused"
)

func outcomeOf(result traffic.Result) string {
	switch {
	case result.Err == nil:
		return answered
	case errors.Is(result.Err, syscall.ECONNREFUSED):
		return refused
	}
	return result.Err.Error()
}

// turnsOnce fails unless every request was answered or refused, and all that
// were sent after the first of the given outcome have the same.
func turnsOnce(t *testing.T, results traffic.Results, last string) {
	t.Helper()
	var turn time.Time
	for _, one := range results {
		outcome := outcomeOf(one)
		if outcome != answered && outcome != refused {
			t.Errorf("a request at %s was neither answered nor refused: %s", one.Sent.Format(time.StampMilli), outcome)
		}
		if outcome == last && (turn.IsZero() || one.Done.Before(turn)) {
			turn = one.Done
		}
	}
	after := results.Since(turn)
	if turn.IsZero() || len(after) < 20 {
		t.Errorf("%d requests were sent after the first that was %s, which says nothing", len(after), last)
	}
	for _, one := range after {
		if outcome := outcomeOf(one); outcome != last {
			t.Errorf("a request was %s %s after the first that was %s", outcome, one.Sent.Sub(turn), last)
		}
	}
}

// endpoints waits until the number of a Service's endpoints that are ready, and
// of all that are in its slices, is as wanted.
func endpoints(t *testing.T, ctx context.Context, service, what string, wanted func(ready, all int) bool) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, "endpoints: "+what, func() error {
		list, err := cluster.Kubernetes.DiscoveryV1().EndpointSlices("default").List(ctx,
			metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
		if err != nil {
			t.Fatal(err)
		}
		ready, all := 0, 0
		for i := range list.Items {
			for _, one := range list.Items[i].Endpoints {
				all++
				if *one.Conditions.Ready {
					ready++
				}
			}
		}
		if !wanted(ready, all) {
			return fmt.Errorf("%d ready, %d in all", ready, all)
		}
		return nil
	})
}

// TestRollingUpdate replaces every Pod of a Deployment under load.
func TestRollingUpdate(t *testing.T) {
	ctx := need(t)
	deployment, address := deploy(t, ctx, "rolling", 3)
	generator := asking(t, ctx, address)
	// answered waits until so many Pods have answered in all: which one does is random.
	answered := func(pods int) {
		t.Helper()
		testkit.Eventually(t, 20*time.Second, fmt.Sprintf("answers from %d Pods", pods), func() error {
			if n := len(generator.Results().Hosts()); n != pods {
				return fmt.Errorf("from %d", n)
			}
			return nil
		})
	}
	answered(3)
	change(t, ctx, deployment, `{"spec":{"template":{"spec":{"containers":[{"name":"server","env":[{"name":"VERSION","value":"2"}]}]}}}}`)
	testkit.Eventually(t, 20*time.Second, "answers from version 2 only", func() error {
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
	endpoints(t, ctx, "rolling", "those of the old Pods have gone", func(ready, all int) bool { return ready == 3 && all == 3 })
	labtest.More(t, ctx, 30, generator)
	answered(6) // three old and three new ones
	none(t, generator.Stop())
}
