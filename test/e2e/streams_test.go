// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// TestLabStreams: exec, attach, port-forward and ephemeral containers, as kubectl
// asks the lab's kubelets for them, over WebSocket and SPDY.
func TestLabStreams(t *testing.T) {
	ctx := need(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "streams"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "web", Image: "go-http", Env: []corev1.EnvVar{{Name: "GREETING", Value: "good day"}}},
			{Name: "echo", Image: "go-http", Stdin: true, Command: []string{"cat"}},
		}},
	}
	suite.Create(t, ctx, pod)
	testkit.Eventually(t, 30*time.Second, "the Pod runs", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("%+v", pod.Status.ContainerStatuses)
		}
		return nil
	})
	for protocol, sockets := range map[string]string{"WebSocket": "true", "SPDY": "false"} {
		t.Run(protocol, func(t *testing.T) {
			kubectl := func(ctx context.Context, args ...string) *exec.Cmd {
				cmd := exec.CommandContext(ctx, filepath.Join(cluster.Setup.Programs, "kubectl"), args...)
				cmd.Env = []string{"KUBECONFIG=" + cluster.AdminConfig(), "HOME=" + filepath.Dir(cluster.AdminConfig()), "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=" + sockets, "KUBECTL_PORT_FORWARD_WEBSOCKETS=" + sockets}
				return cmd
			}
			for _, test := range []struct {
				name, in, out, err string
				code               int
				args               []string
			}{
				{"output, with the container's environment", "", "good day\n", "", 0, []string{"exec", "streams", "-c", "web", "--", "sh", "-c", "echo $GREETING"}},
				{"input", "hello\n", "HELLO\n", "", 0, []string{"exec", "-i", "streams", "-c", "web", "--", "tr", "a-z", "A-Z"}},
				{"standard error and exit code", "", "", "alas\n", 7, []string{"exec", "streams", "-c", "web", "--", "sh", "-c", "echo alas >&2; exit 7"}},
				{"no such container", "", "", "nobody", 1, []string{"exec", "streams", "-c", "nobody", "--", "true"}},
			} {
				t.Run(test.name, func(t *testing.T) {
					cmd := kubectl(ctx, test.args...)
					var out, errs bytes.Buffer
					cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(test.in), &out, &errs
					err := cluster.Machine(lab.ControlPlane).Start(cmd)
					if err == nil {
						err = cmd.Wait()
					}
					code := 0
					if exit, ok := errors.AsType[*exec.ExitError](err); ok {
						code = exit.ExitCode()
					} else if err != nil {
						t.Fatal(err)
					}
					if out.String() != test.out || !strings.Contains(errs.String(), test.err) || code != test.code {
						t.Errorf("exit code %d, output %q, standard error %q", code, out.String(), errs.String())
					}
				})
			}
			t.Run("attach", func(t *testing.T) {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				cmd := kubectl(ctx, "attach", "-i", "streams", "-c", "echo")
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				out := &testkit.Buffer{}
				cmd.Stdout, cmd.Stderr = out, out
				if err := cluster.Machine(lab.ControlPlane).Start(cmd); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(in, "one by %s\n", protocol)
				testkit.Eventually(t, 20*time.Second, "what the container echoes", func() error {
					if !strings.Contains(out.String(), "one by "+protocol+"\n") {
						return fmt.Errorf("%q", out.String())
					}
					return nil
				})
				cancel()
				_ = cmd.Wait()
			})
			t.Run("port-forward", func(t *testing.T) {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				cmd := kubectl(ctx, "port-forward", "streams", "18080:38001")
				out := &testkit.Buffer{}
				cmd.Stdout, cmd.Stderr = out, out
				if err := cluster.Machine(lab.ControlPlane).Start(cmd); err != nil {
					t.Fatal(err)
				}
				transport := &http.Transport{DisableKeepAlives: true, DialContext: cluster.Machine(lab.ControlPlane).Dial}
				for range 2 {
					testkit.Eventually(t, 20*time.Second, "an answer", func() error {
						request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:18080/", nil)
						if err != nil {
							return err
						}
						response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(request)
						if err != nil {
							return fmt.Errorf("%w; kubectl: %q", err, out.String())
						}
						defer response.Body.Close()
						if response.StatusCode != http.StatusOK {
							return errors.New(response.Status)
						}
						return nil
					})
				}
				cancel()
				_ = cmd.Wait()
			})
		})
	}
	if _, err := cluster.Kubectl(ctx, nil, "debug", "streams", "--image=go-http", "-c", "doctor", "--", "sh", "-c", "echo well; exit 3"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the ephemeral container has ended", func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		for _, c := range pod.Status.EphemeralContainerStatuses {
			if c.Name == "doctor" && c.State.Terminated != nil && c.State.Terminated.ExitCode == 3 {
				return nil
			}
		}
		return fmt.Errorf("%+v", pod.Status.EphemeralContainerStatuses)
	})
	if got := cluster.PodLog(pod, "doctor", 3); got != "well" {
		t.Errorf("its log: %q", got)
	}
}
