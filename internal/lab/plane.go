// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/causeway-lb/causeway/internal/lab/kubelet"
	"github.com/causeway-lb/causeway/internal/lab/pki"
)

// planeDir is on the supervisor's tmpfs, out of sight for nodes and Pods.
const planeDir = "/run/control-plane"

// plane is the control plane's programs.
type plane struct {
	lab     *Lab
	version string

	mu      sync.Mutex
	running map[string]*component
}

// component is one program of the control plane.
type component struct {
	cmd      *exec.Cmd
	ended    chan struct{}
	stopping bool
}

// startPlane starts everything at once, since all of it waits for the API
// server anyway, and returns when that is ready.
func (l *Lab) startPlane(ctx context.Context) error {
	p := &plane{lab: l, running: map[string]*component{}}
	l.plane = p
	if err := p.writeFiles(); err != nil {
		return err
	}
	if err := errors.Join(p.start("etcd"), p.start("kube-apiserver")); err != nil {
		return err
	}
	if err := l.connect(); err != nil {
		return err
	}
	if err := p.waitReady(ctx); err != nil {
		return err
	}
	return errors.Join(p.start("kube-controller-manager"), p.start("kube-scheduler"))
}

// connect makes the administrator's clients.
func (l *Lab) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", l.AdminConfig())
	if err != nil {
		return fmt.Errorf("read admin's kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 500, 1000
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.Machine(ControlPlane).Dial(ctx, network, address)
	}
	l.REST = config
	if l.Kubernetes, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return nil
}

// writeFiles makes every key, certificate and kubeconfig.
func (p *plane) writeFiles() error {
	if err := os.MkdirAll(planeDir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	l := p.lab
	host := machine{ControlPlane, controlPlaneNumber}.addresses()
	serving, err := l.authority.Server(
		[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
		append(host, ServiceCIDR4.Addr().Next(), ServiceCIDR6.Addr().Next(), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()))
	if err != nil {
		return err
	}
	kubeletClient, err := l.authority.Client(kubelet.APIServerUser, "kubeadm:cluster-admins")
	if err != nil {
		return err
	}
	private, public, err := pki.SigningKey()
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"ca.crt": l.authority.Cert, "apiserver.crt": serving.Cert, "apiserver.key": serving.Key,
		"kubelet-client.crt": kubeletClient.Cert, "kubelet-client.key": kubeletClient.Key,
		"sa.key": private, "sa.pub": public, "audit.yaml": []byte(auditPolicy),
	} {
		if err := os.WriteFile(filepath.Join(planeDir, name), data, 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	server := "https://" + APIServer.String()
	outside := fmt.Sprintf("https://127.0.0.1:%d", l.Setup.RelayPort)
	return errors.Join(
		l.writeKubeconfig(l.AdminConfig(), server, "kubernetes-admin", "system:masters"),
		l.writeKubeconfig(filepath.Join(planeDir, "kube-controller-manager.conf"), server, "system:kube-controller-manager"),
		l.writeKubeconfig(filepath.Join(planeDir, "kube-scheduler.conf"), server, "system:kube-scheduler"),
		l.writeKubeconfig(l.Kubeconfig(), outside, "kubernetes-admin", "system:masters"),
	)
}

// Version is the API server's, such as v1.37.2.
func (l *Lab) Version() string { return l.plane.version }

// AdminConfig is a kubeconfig with administrator's rights for programs that run
// on the control plane's machine.
func (l *Lab) AdminConfig() string { return filepath.Join(planeDir, "admin.conf") }

// writeKubeconfig makes a certificate for a user and a kubeconfig with it.
func (l *Lab) writeKubeconfig(path, server, user string, groups ...string) error {
	pair, err := l.authority.Client(user, groups...)
	if err != nil {
		return err
	}
	name := "causeway-" + or(l.Setup.Name, "lab")
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: l.authority.Cert}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: pair.Cert, ClientKeyData: pair.Key}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: user}
	config.CurrentContext = name
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// auditPolicy has every request written down by whom it was made; a watch when it
// begins, too.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// AuditLog is the API server's record of who did what, a JSON object a line.
func (l *Lab) AuditLog() string { return filepath.Join(l.Setup.State, logsDir, "audit.log") }

// arguments of each program. The controllers that Causeway replaces are off,
// unless the setup wants them.
func (p *plane) arguments(name string) []string {
	file := func(name string) string { return filepath.Join(planeDir, name) }
	serviceRange := ServiceCIDR4.String() + "," + ServiceCIDR6.String()
	switch name {
	case "etcd":
		return []string{
			"--data-dir=" + file("etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=unix://" + file("etcd.sock"), "--advertise-client-urls=unix://" + file("etcd.sock"),
			"--listen-peer-urls=unix://" + file("etcd-peer.sock"), "--initial-advertise-peer-urls=unix://" + file("etcd-peer.sock"),
			"--initial-cluster=default=unix://" + file("etcd-peer.sock"),
		}
	case "kube-apiserver":
		arguments := []string{
			"--etcd-servers=unix://" + file("etcd.sock"), "--etcd-compaction-interval=0",
			"--advertise-address=" + APIServer.Addr().String(), "--secure-port=6443",
			"--tls-cert-file=" + file("apiserver.crt"), "--tls-private-key-file=" + file("apiserver.key"),
			"--allow-privileged", "--client-ca-file=" + file("ca.crt"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--kubelet-client-certificate=" + file("kubelet-client.crt"), "--kubelet-client-key=" + file("kubelet-client.key"),
			"--kubelet-certificate-authority=" + file("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + file("sa.pub"), "--service-account-signing-key-file=" + file("sa.key"),
			"--service-cluster-ip-range=" + serviceRange, "--anonymous-auth=false",
			"--audit-policy-file=" + file("audit.yaml"), "--audit-log-path=" + p.lab.AuditLog(),
			"--profiling=false", "--endpoint-reconciler-type=lease",
		}
		if gates := p.lab.Setup.FeatureGates; gates != "" {
			arguments = append(arguments, "--feature-gates="+gates)
		}
		return arguments
	case "kube-controller-manager":
		controllers := "*"
		if !p.lab.Setup.EndpointControllers {
			controllers += ",-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller"
		}
		return []string{
			"--kubeconfig=" + file(name+".conf"), "--leader-elect=false", "--use-service-account-credentials",
			"--controllers=" + controllers,
			"--service-account-private-key-file=" + file("sa.key"), "--root-ca-file=" + file("ca.crt"),
			"--bind-address=127.0.0.1", "--profiling=false", "--flex-volume-plugin-dir=" + file("flexvolume"),
		}
	}
	return []string{"--kubeconfig=" + file(name+".conf"), "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"}
}

// start starts one program; its end, unless wanted, fails the lab.
func (p *plane) start(name string) error {
	log, err := p.lab.logFile(name)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(p.lab.Setup.Programs, name), p.arguments(name)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + planeDir, "TMPDIR=" + planeDir}
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.lab.Machine(ControlPlane).Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c := &component{cmd: cmd, ended: make(chan struct{})}
	p.mu.Lock()
	p.running[name] = c
	p.mu.Unlock()
	go func() {
		err := cmd.Wait()
		close(c.ended)
		p.mu.Lock()
		wanted := c.stopping
		p.mu.Unlock()
		if !wanted {
			p.lab.fail(fmt.Errorf("%s ended: %w\n%s", name, or(err, errEnded), tail(log.Name(), 8)))
		}
	}()
	return nil
}

var errEnded = errors.New("exit status 0")

// kill ends one program at once.
func (p *plane) kill(name string) {
	p.mu.Lock()
	c := p.running[name]
	if c != nil {
		c.stopping = true
	}
	delete(p.running, name)
	p.mu.Unlock()
	if c != nil {
		_ = c.cmd.Process.Signal(unix.SIGKILL)
		<-c.ended
	}
}

func (p *plane) stop() {
	for _, name := range []string{"kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"} {
		p.kill(name)
	}
}

// KillAPIServer kills the API server; nodes go on without it.
func (l *Lab) KillAPIServer() { l.plane.kill("kube-apiserver") }

// StartAPIServer starts it again and returns when it is ready.
func (l *Lab) StartAPIServer(ctx context.Context) error {
	if err := l.plane.start("kube-apiserver"); err != nil {
		return err
	}
	return l.plane.waitReady(ctx)
}

// waitReady polls until the API server says that it is ready.
func (p *plane) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	config := rest.CopyConfig(p.lab.REST)
	config.Timeout = 2 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	last := errors.New("not asked yet")
	for {
		body, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil && bytes.Equal(body, []byte("ok")) {
			break
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case err := <-p.lab.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w: %w\n%s", ctx.Err(), last, p.lab.Tail("kube-apiserver", 8))
		case <-time.After(50 * time.Millisecond):
		}
	}
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("ask for the API server's version: %w", err)
	}
	p.version = version.GitVersion
	return nil
}

// Tail returns the last lines of a program's or node's log.
func (l *Lab) Tail(name string, lines int) string {
	return tail(filepath.Join(l.Setup.State, logsDir, name+".log"), lines)
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// markControlPlane gives the control plane's node the labels that
// NodeRestriction doesn't let it take by itself, the two of kubeadm's that
// matter here: its role, and that load balancers keep away from it.
func (l *Lab) markControlPlane(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:"",%q:""}}}`, controlPlaneRole, corev1.LabelNodeExcludeBalancers)
	for {
		_, err := l.Kubernetes.CoreV1().Nodes().Patch(ctx, ControlPlane, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("label the control plane's node: %w\n%s", err, l.Tail(ControlPlane, 8))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// PodLog returns the last lines of a container's log.
func (l *Lab) PodLog(pod *corev1.Pod, container string, lines int) string {
	return tail(kubelet.LogPath(filepath.Join(l.Setup.State, logsDir, pod.Spec.NodeName), pod.Namespace, pod.Name, container), lines)
}

func indent(text string) string {
	return "\n    | " + strings.ReplaceAll(text, "\n", "\n    | ")
}
